/*
 * What qmail-queue and qmail-remote for Postern share: the conversation with the daemon up to its answer. shim.go beside
 * this folder is the same in Go. It is a header of static functions and not a library, so that each program is built of
 * one source; all that it declares is used by both.
 *
 * The program defines fail(), which ends it, and FAIL_* say why.
 */
#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { EXIT_TEMPORARY = 71 };

enum {
	VERSION = 1, FLAG_CUT = 1, FLAG_PRIVILEGED = 2, DIALECTS = 6,
	HELLO_HEAD = 18, MAX_CHUNK = 16384, MAX_PACKET = HELLO_HEAD + MAX_CHUNK,
	MAX_ENV = 64 << 10, MAX_TEXT = 1023, MAX_PATH = 4096, MAX_HOPS = 5,
	CONNECT_WAIT = 10000, CONNECT_WAIT_MAX = 60000, /* ms */
};

enum failure {
	FAIL_ARGUMENTS, /* too many of them */
	FAIL_PATH, /* no socket can have that path */
	FAIL_ABSENT, /* no daemon */
	FAIL_BROKEN, /* the socket failed */
	FAIL_SLOW, /* the daemon takes nothing more */
};

static _Noreturn void fail(enum failure why);

static const int64_t NOW = -1;

static char **args;
static int nargs;
static bool privileged;
static int64_t patience = CONNECT_WAIT;
static int sock = -1;
static struct sigaction old_pipe;

static unsigned char out[MAX_PACKET], in[MAX_PACKET];
static char next_path[MAX_PATH];

/* talk is how far the conversation has come; its times are in milliseconds. */
static struct { int64_t quiet, end; uint32_t beat, slow; bool envelope; } talk;

static uint32_t get16(const unsigned char *p) { return p[0] | (uint32_t)p[1] << 8; }
static uint32_t get32(const unsigned char *p) { return get16(p) | get16(p + 2) << 16; }
static void put16(unsigned char *p, uint32_t v) { p[0] = v & 255; p[1] = v >> 8 & 255; }
static void put32(unsigned char *p, uint32_t v) { put16(p, v); put16(p + 2, v >> 16); }

static int64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* number reads a plain decimal number; -1 if it is none. One that is greater than max counts as max. */
static long number(const char *s, long max)
{
	long n = 0;

	if (!s || !*s)
		return -1;
	for (; *s; s++) {
		if (*s < '0' || *s > '9')
			return -1;
		n = n * 10 + (*s - '0');
		if (n > max)
			n = max;
	}
	return n;
}

/* begin keeps what the program was called with. */
static void begin(int argc, char **argv)
{
	long wait;

	nargs = argc;
	args = argv;
	privileged = getauxval(AT_SECURE) || getuid() != geteuid() || getgid() != getegid();
	wait = privileged ? -1 : number(getenv("POSTERN_WAIT"), CONNECT_WAIT_MAX);
	if (wait >= 0)
		patience = wait;
}

/* ready waits until the socket can be read or written; false: the time is up. */
static bool ready(short events, int64_t until)
{
	struct pollfd p = {.fd = sock, .events = events};
	int64_t left;
	int n;

	do {
		left = until - now();
		n = poll(&p, 1, left < 0 ? 0 : left > INT_MAX ? INT_MAX : (int)left);
	} while (n < 0 && (errno == EINTR || errno == EAGAIN));
	return n != 0;
}

/* put sends a frame, and descriptors with it: 0, or 0 and 1. It does so until a time, or only if that can be at once
 * (NOW). False: the daemon has hung up, and what it said last is still to be read; or the frame could not be sent at
 * once. */
static bool put(size_t n, unsigned descriptors, int64_t until)
{
	union { struct cmsghdr align; char space[CMSG_SPACE(2 * sizeof(int))]; } control;
	struct iovec v = {.iov_base = out, .iov_len = n};
	struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1};
	struct cmsghdr *c;

	if (descriptors) {
		memset(&control, 0, sizeof control);
		m.msg_control = control.space;
		m.msg_controllen = CMSG_SPACE(descriptors * sizeof(int));
		c = CMSG_FIRSTHDR(&m);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(descriptors * sizeof(int));
		memcpy(CMSG_DATA(c), (int[2]){0, 1}, descriptors * sizeof(int));
	}
	while (sendmsg(sock, &m, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) {
		if (errno == EINTR)
			continue;
		if (until == NOW || errno == EPIPE || errno == ECONNRESET)
			return false;
		if (errno != EAGAIN)
			fail(FAIL_BROKEN);
		if (!ready(POLLOUT, until))
			fail(FAIL_SLOW);
	}
	return true;
}

/* get receives a frame into in, and the descriptors that come with it: none, or with a P as many as are wanted. 0: the
 * daemon is gone or sent what cannot be; -1: the time is up. */
static ssize_t get(int64_t until, int *fds, unsigned want, unsigned *nfds)
{
	union { struct cmsghdr align; char space[CMSG_SPACE(2 * sizeof(int))]; } control;
	struct iovec v = {.iov_base = in, .iov_len = sizeof in};
	struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1};
	struct cmsghdr *c;
	ssize_t n;

	for (;;) {
		m.msg_control = control.space;
		m.msg_controllen = CMSG_SPACE(want * sizeof(int));
		n = recvmsg(sock, &m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
		if (n >= 0)
			break;
		if (errno == EINTR)
			continue;
		if (errno != EAGAIN)
			return 0;
		if (!ready(POLLIN, until))
			return -1;
	}
	*nfds = 0;
	for (c = CMSG_FIRSTHDR(&m); c; c = CMSG_NXTHDR(&m, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS || *nfds || c->cmsg_len != CMSG_LEN(want * sizeof(int)))
			return 0;
		memcpy(fds, CMSG_DATA(c), want * sizeof(int));
		*nfds = want;
	}
	if ((m.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) || (*nfds && (n == 0 || in[0] != 'P')))
		return 0;
	return n;
}

/* connect_daemon tries for as long as patience lasts. A full backlog (EAGAIN, since the socket does not block) is as
 * good as a missing daemon. */
static void connect_daemon(const char *variable, const char *otherwise)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	const char *path = privileged ? NULL : getenv(variable);
	int64_t until = now() + patience, left, pause = 100;

	if (!path || !*path)
		path = otherwise;
	if (strlen(path) >= sizeof a.sun_path)
		fail(FAIL_PATH);
	strcpy(a.sun_path, path);
	for (;;) {
		sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
		if (sock >= 0 && connect(sock, (struct sockaddr *)&a, sizeof a) == 0)
			return;
		if (sock >= 0)
			close(sock);
		sock = -1;
		left = until - now();
		if (left <= 0)
			fail(FAIL_ABSENT);
		poll(NULL, 0, (int)(left < pause ? left : pause));
		pause = pause < 1000 ? pause * 3 / 2 : 1000;
	}
}

/* stream adds bytes to the hello, and sends it, and what goes on from it, whenever it is full. */
static struct { size_t n, max; unsigned descriptors; bool hung_up; int64_t until; } hello;

static void stream_flush(void)
{
	if (!hello.hung_up && !put(hello.n, hello.descriptors, hello.until))
		hello.hung_up = true;
	hello.descriptors = 0;
	hello.n = 1;
	hello.max = 1 + MAX_CHUNK;
	out[0] = 'D';
}

static void stream(const char *s, size_t n)
{
	size_t part;

	for (; n; n -= part, s += part) {
		if (hello.n == hello.max)
			stream_flush();
		part = hello.max - hello.n < n ? hello.max - hello.n : n;
		memcpy(out + hello.n, s, part);
		hello.n += part;
	}
}

/* say_hello sends the arguments, what fits of env, and descriptors (see put) with the first frame. */
static void say_hello(unsigned char program, unsigned descriptors, size_t max_args, char **env)
{
	size_t length, args_len = 0, env_len = 0, sent = 0;
	bool cut = false;
	char **e;
	int i;

	for (i = 0; i < nargs; i++) {
		args_len += strlen(args[i]) + 1;
		if (args_len > max_args || nargs > 65535)
			fail(FAIL_ARGUMENTS);
	}
	for (e = env; *e; e++) {
		length = strlen(*e) + 1;
		if (length > MAX_ENV - env_len)
			cut = true;
		else
			env_len += length;
	}
	out[0] = 'H';
	out[1] = VERSION;
	out[2] = program;
	out[3] = (cut ? FLAG_CUT : 0) | (privileged ? FLAG_PRIVILEGED : 0);
	put32(out + 4, (uint32_t)getppid());
	put16(out + 8, (uint32_t)nargs);
	put32(out + 10, (uint32_t)args_len);
	put32(out + 14, (uint32_t)env_len);
	hello.n = HELLO_HEAD;
	hello.max = MAX_PACKET;
	hello.descriptors = descriptors;
	hello.until = now() + patience;
	for (i = 0; i < nargs; i++)
		stream(args[i], strlen(args[i]) + 1);
	for (e = env; *e; e++) {
		length = strlen(*e) + 1;
		if (length > MAX_ENV - sent)
			continue;
		sent += length;
		stream(*e, length);
	}
	stream_flush();
}

/* follow does what a frame says that only keeps the conversation going: A, B, E, or one to be ignored. False: it is
 * another, or malformed, or out of its place. */
static bool follow(size_t n, bool asked)
{
	if (in[0] >= 'a' && in[0] <= 'z')
		return true;
	if (in[0] == 'A' && !talk.beat && n == 10 && in[1] == VERSION && get32(in + 2) && get32(in + 6)) {
		talk.beat = get32(in + 2);
		talk.slow = get32(in + 6);
		return true;
	}
	if (in[0] == 'E' && talk.beat && !asked && n == 1) {
		if (!talk.envelope)
			talk.end = now() + talk.slow;
		talk.envelope = true;
		return true;
	}
	return in[0] == 'B' && talk.beat && n == 1;
}

/* good_exit looks at an X, whose text has the length at in + 3 and begins at in + 5. */
static bool good_exit(size_t n)
{
	size_t length = n >= 5 ? get16(in + 3) : 0;

	return n >= 5 && n == 5 + length && length <= MAX_TEXT && in[2] < DIALECTS && (!length || in[5] == 'D' || in[5] == 'Z');
}

/* good_next looks at an N, whose mode is in[1], its count at in + 2, and its path at in + 4. */
static bool good_next(size_t n, unsigned max_pairs)
{
	unsigned count = n >= 6 ? get16(in + 2) : 0;

	return n >= 6 && n <= 4 + MAX_PATH && in[1] <= 1 && count >= 1 && count <= (in[1] ? max_pairs : 1) && in[4] == '/' &&
		memchr(in + 4, 0, n - 4) == in + n - 1;
}

/* clean leaves printable ASCII of a text. */
static void clean(unsigned char *s, size_t n)
{
	for (; n; n--, s++)
		if (*s < 0x20 || *s > 0x7e)
			*s = '?';
}

/* result says how a run of the next program ended, if the daemon can hear it; pid 0: it was not started. */
static void result(unsigned index, unsigned exit, unsigned sig, uint32_t pid)
{
	out[0] = 'R';
	put16(out + 1, index);
	out[3] = exit & 255;
	out[4] = sig & 255;
	put32(out + 5, pid);
	put(9, 0, NOW);
}

static long hops(void)
{
	long n = number(getenv("POSTERN_HOPS"), MAX_HOPS);

	return n < 0 ? 0 : n;
}

/* is_loop reports whether the next program is this one, or has been run by too many like it. */
static bool is_loop(void)
{
	struct stat us, it;

	return hops() >= MAX_HOPS ||
		(stat("/proc/self/exe", &us) == 0 && stat(next_path, &it) == 0 && us.st_dev == it.st_dev && us.st_ino == it.st_ino);
}

/* execute turns this process into the next program, with our environment and one hop more; it returns if that cannot be. */
static void execute(char **argv)
{
	static char hop[] = "POSTERN_HOPS=0";
	size_t n = 0;
	char **e;

	for (e = environ; *e; e++)
		n++;
	char *env[n + 2]; /* fits: execve() takes no more than a quarter of the stack for arguments and environment */
	for (n = 0, e = environ; *e; e++)
		if (strncmp(*e, "POSTERN_HOPS=", 13) != 0)
			env[n++] = *e;
	hop[13] = (char)('1' + hops());
	env[n++] = hop;
	env[n] = NULL;
	execve(next_path, argv, env);
}
