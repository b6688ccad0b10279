#include "textflag.h"

#define SYS_CLONE 220
#define FLAGS 0x4111 // CLONE_VM | CLONE_VFORK | SIGCHLD

// func vfork() (pid uintptr, errno syscall.Errno)
//
// The return address stays in the link register.
TEXT ·vfork(SB),NOSPLIT|NOFRAME,$0-16
	MOVD	$FLAGS, R0
	MOVD	$0, R1
	MOVD	$0, R2
	MOVD	$0, R3
	MOVD	$0, R4
	MOVD	$0, R5
	MOVD	$SYS_CLONE, R8
	SVC
	CMN	$4095, R0
	BCC	ok
	MOVD	ZR, pid+0(FP)
	NEG	R0, R0
	MOVD	R0, errno+8(FP)
	RET
ok:
	MOVD	R0, pid+0(FP)
	MOVD	ZR, errno+8(FP)
	RET
