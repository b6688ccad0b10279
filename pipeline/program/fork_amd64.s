#include "textflag.h"

#define SYS_CLONE 56
#define FLAGS 0x4111 // CLONE_VM | CLONE_VFORK | SIGCHLD

// func vfork() (pid uintptr, errno syscall.Errno)
//
// The child overwrites the stack that is above the return address when it goes
// on, so the parent keeps that in a register.
TEXT ·vfork(SB),NOSPLIT|NOFRAME,$0-16
	MOVQ	$FLAGS, DI
	MOVQ	$0, SI
	MOVQ	$0, DX
	MOVQ	$0, R10
	MOVQ	$0, R8
	MOVQ	$0, R9
	MOVQ	$SYS_CLONE, AX
	POPQ	R12
	SYSCALL
	PUSHQ	R12
	CMPQ	AX, $0xfffffffffffff001
	JLS	ok
	MOVQ	$0, pid+0(FP)
	NEGQ	AX
	MOVQ	AX, errno+8(FP)
	RET
ok:
	MOVQ	AX, pid+0(FP)
	MOVQ	$0, errno+8(FP)
	RET
