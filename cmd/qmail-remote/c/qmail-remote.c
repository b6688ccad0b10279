/*
 * qmail-remote for Postern: hands the caller's descriptor 0 and its arguments to the daemon, waits, and either becomes
 * the next qmail-remote with the message that comes back, or prints the report that comes back. It parses nothing of the
 * message. The format of the frames, the times and what ends a conversation are written down in
 * pipeline/ingress/handoff/wire/doc.go; main.go beside this folder is the same in Go.
 *
 *   cc -O2 -Wall -Wextra -static -DPOSTERN_REMOTE_SOCKET_PATH='"/run/postern/remote.sock"' -o qmail-remote qmail-remote.c
 *
 * Three rules hold everywhere: a failure of ours is a Z report, which qmail-rspawn takes as temporary; the exit code is
 * 0, as qmail-rspawn makes a bounce of almost every other; and a report is written when all of it is there, because half
 * of one is a bounce, too.
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

#ifndef POSTERN_REMOTE_SOCKET_PATH
#define POSTERN_REMOTE_SOCKET_PATH "/run/postern/remote.sock"
#endif

enum {
	VERSION = 1, FLAG_PRIVILEGED = 2, EXIT_TEMPORARY = 71,
	HELLO_HEAD = 18, MAX_CHUNK = 16384, MAX_PACKET = HELLO_HEAD + MAX_CHUNK,
	MAX_ARGS = 2 << 20, MAX_TEXT = 1023, MAX_PATH = 4096, MAX_REPORT = 1 << 20, MAX_HOPS = 5, DIALECTS = 6,
	CONNECT_WAIT = 10000, CONNECT_WAIT_MAX = 60000, /* ms */
#ifdef POSTERN_QUICK /* for tests */
	READ_WAIT = 3000,
#else
	READ_WAIT = 3600000, /* for the daemon to have read the message */
#endif
};

static const int64_t NOW = -1;

/* The reports of our own, each a letter, a line and a NUL. */
#define IMPROPER "DI (qmail-remote) was invoked improperly. (#5.3.5)\n"
#define UNREADABLE "ZUnable to read message. (#4.3.0)\n"
#define TOO_LONG "ZThe arguments are too long for Postern. (#4.3.0)\n"
#define NO_DAEMON "ZUnable to reach the Postern daemon. (#4.3.0)\n"
#define DIED "ZThe Postern daemon went away. (#4.3.0)\n"
#define SLOW "ZThe Postern daemon did not answer in time. (#4.3.0)\n"
#define NONSENSE "ZThe Postern daemon gave no answer that can be used. (#4.3.0)\n"
#define LOOP "ZThe next qmail-remote is Postern's own. (#4.4.6)\n"
#define NO_NEXT "ZUnable to run the next qmail-remote. (#4.3.0)\n"
#define NO_MEMORY "ZOut of memory. (#4.3.0)\n"

static char **args;
static int nargs;
static bool privileged;
static int64_t patience = CONNECT_WAIT;
static int sock = -1;
static struct sigaction old_pipe;

static unsigned char out[MAX_PACKET], in[MAX_PACKET];
static char next_path[MAX_PATH];
static struct { unsigned char *s; size_t n, room; } text;

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

/* report writes all n bytes to stdout, for as long as somebody reads them, and ends the shim. */
static _Noreturn void report(const void *report, size_t n)
{
	struct pollfd p = {.fd = 1, .events = POLLOUT};
	const char *s = report;
	ssize_t done;

	while (n > 0) {
		done = write(1, s, n);
		if (done >= 0) {
			s += done;
			n -= (size_t)done;
		} else if (errno == EAGAIN) {
			poll(&p, 1, -1);
		} else if (errno != EINTR) {
			break;
		}
	}
	_exit(0);
}

/* say reports one of our own lines; its NUL is the report's. */
#define say(line) report(line, sizeof line)

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

/* put sends a frame, until a time, or only if that can be at once (NOW). False: the daemon has hung up, and what it said
 * last is still to be read; or the frame could not be sent at once. */
static bool put(size_t n, bool descriptor, int64_t until)
{
	union { struct cmsghdr align; char space[CMSG_SPACE(sizeof(int))]; } control;
	struct iovec v = {.iov_base = out, .iov_len = n};
	struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1};
	struct cmsghdr *c;

	if (descriptor) {
		memset(&control, 0, sizeof control); /* descriptor 0 */
		m.msg_control = control.space;
		m.msg_controllen = sizeof control.space;
		c = CMSG_FIRSTHDR(&m);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int));
	}
	while (sendmsg(sock, &m, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) {
		if (errno == EINTR)
			continue;
		if (until == NOW || errno == EPIPE || errno == ECONNRESET)
			return false;
		if (errno != EAGAIN)
			say(DIED);
		if (!ready(POLLOUT, until))
			say(SLOW);
	}
	return true;
}

/* get receives a frame into in; 0: the daemon is gone or sent what cannot be; -1: the time is up. */
static ssize_t get(int64_t until, int *fd)
{
	union { struct cmsghdr align; char space[CMSG_SPACE(sizeof(int))]; } control;
	struct iovec v = {.iov_base = in, .iov_len = sizeof in};
	struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1};
	struct cmsghdr *c;
	ssize_t n;

	for (;;) {
		m.msg_control = control.space;
		m.msg_controllen = sizeof control.space;
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
	*fd = -1;
	for (c = CMSG_FIRSTHDR(&m); c; c = CMSG_NXTHDR(&m, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS || *fd >= 0 || c->cmsg_len != CMSG_LEN(sizeof(int)))
			return 0;
		memcpy(fd, CMSG_DATA(c), sizeof(int));
	}
	if ((m.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) || (*fd >= 0) != (n > 0 && in[0] == 'P'))
		return 0;
	return n;
}

/* connect_daemon tries for as long as patience lasts. A full backlog (EAGAIN, since the socket does not block) is as
 * good as a missing daemon. */
static void connect_daemon(void)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	const char *path = privileged ? NULL : getenv("POSTERN_REMOTE_SOCKET");
	int64_t until = now() + patience, left, pause = 100;

	if (!path || !*path)
		path = POSTERN_REMOTE_SOCKET_PATH;
	if (strlen(path) >= sizeof a.sun_path)
		say(NO_DAEMON);
	strcpy(a.sun_path, path);
	for (;;) {
		sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
		if (sock >= 0 && connect(sock, (struct sockaddr *)&a, sizeof a) == 0)
			return;
		if (sock >= 0)
			close(sock);
		left = until - now();
		if (left <= 0)
			say(NO_DAEMON);
		poll(NULL, 0, (int)(left < pause ? left : pause));
		pause = pause < 1000 ? pause * 3 / 2 : 1000;
	}
}

/* say_hello sends the arguments, in as many frames as they need, and descriptor 0 with the first. */
static void say_hello(void)
{
	size_t total = 0, n = HELLO_HEAD, max = MAX_PACKET, left, part;
	int64_t until = now() + patience;
	bool first = true;
	const char *s;
	int i;

	for (i = 0; i < nargs; i++) {
		total += strlen(args[i]) + 1;
		if (total > MAX_ARGS || nargs > 65535)
			say(TOO_LONG);
	}
	out[0] = 'H';
	out[1] = VERSION;
	out[2] = 'r';
	out[3] = privileged ? FLAG_PRIVILEGED : 0;
	put32(out + 4, (uint32_t)getppid());
	put16(out + 8, (uint32_t)nargs);
	put32(out + 10, (uint32_t)total);
	put32(out + 14, 0);
	for (i = 0; i < nargs; i++) {
		for (s = args[i], left = strlen(s) + 1; left; left -= part, s += part) {
			if (n == max) {
				if (!put(n, first, until))
					return;
				first = false;
				out[0] = 'D';
				n = 1;
				max = 1 + MAX_CHUNK;
			}
			part = max - n < left ? max - n : left;
			memcpy(out + n, s, part);
			n += part;
		}
	}
	put(n, first, until);
}

static long hops(void)
{
	long n = number(getenv("POSTERN_HOPS"), MAX_HOPS);

	return n < 0 ? 0 : n;
}

static bool is_self(const char *path)
{
	struct stat us, it;

	return stat("/proc/self/exe", &us) == 0 && stat(path, &it) == 0 && us.st_dev == it.st_dev && us.st_ino == it.st_ino;
}

/* cannot tells the daemon that the next program was not started. */
static void cannot(void)
{
	out[0] = 'R';
	put16(out + 1, 0);
	out[3] = EXIT_TEMPORARY;
	out[4] = 0;
	put32(out + 5, 0);
	put(9, false, NOW);
}

/* become turns this process into the next program. */
static _Noreturn void become(int message)
{
	static char hop[] = "POSTERN_HOPS=0";
	size_t n = 0;
	char **e;

	if (hops() >= MAX_HOPS || is_self(next_path)) {
		cannot();
		say(LOOP);
	}
	for (e = environ; *e; e++)
		n++;
	char *env[n + 2]; /* fits: execve() takes no more than a quarter of the stack for arguments and environment */
	for (n = 0, e = environ; *e; e++)
		if (strncmp(*e, "POSTERN_HOPS=", 13) != 0)
			env[n++] = *e;
	hop[13] = (char)('1' + hops());
	env[n++] = hop;
	env[n] = NULL;
	if (dup2(message, 0) == 0) {
		sigaction(SIGPIPE, &old_pipe, NULL);
		execve(next_path, args, env);
		signal(SIGPIPE, SIG_IGN);
	}
	cannot();
	say(NO_NEXT);
}

/* keep adds a piece to the report. */
static bool keep(const unsigned char *s, size_t n)
{
	unsigned char *more;
	size_t room = text.room ? text.room : MAX_CHUNK;

	if (n > MAX_REPORT - text.n)
		return false;
	while (room < text.n + n)
		room *= 2;
	if (room != text.room) {
		more = realloc(text.s, room);
		if (!more)
			say(NO_MEMORY);
		text.s = more;
		text.room = room;
	}
	memcpy(text.s + text.n, s, n);
	text.n += n;
	return true;
}

/* answer reports what the daemon said to the end. */
static _Noreturn void answer(size_t n)
{
	size_t i;

	if (text.n && in[1] == 0 && text.s[text.n - 1] == 0)
		report(text.s, text.n);
	if (text.n || n <= 5)
		say(NONSENSE);
	for (i = 5; i < n; i++)
		if (in[i] < 0x20 || in[i] > 0x7e)
			in[i] = '?';
	in[n] = '\n'; /* there is room: MAX_TEXT is less than a chunk */
	in[n + 1] = 0;
	report(in + 5, n - 5 + 2);
}

static bool good_exit(size_t n)
{
	size_t length = n >= 5 ? get16(in + 3) : 0;

	return n >= 5 && n == 5 + length && length <= MAX_TEXT && in[2] < DIALECTS && (!length || in[5] == 'D' || in[5] == 'Z');
}

static bool good_next(size_t n)
{
	return n >= 6 && n <= 4 + MAX_PATH && in[1] == 0 && get16(in + 2) == 1 && in[4] == '/' && memchr(in + 4, 0, n - 4) == in + n - 1;
}

/* converse follows the daemon's frames until one of them ends the shim. */
static _Noreturn void converse(int64_t begun)
{
	int64_t quiet = now() + patience, end = begun + READ_WAIT, until;
	uint32_t beat = 0, slow = 0;
	bool envelope = false, next = false;
	ssize_t n;
	int fd;

	for (;;) {
		until = !next && end < quiet ? end : quiet;
		n = get(until, &fd);
		if (n < 0)
			say(SLOW);
		if (n == 0)
			say(DIED);
		if (in[0] >= 'a' && in[0] <= 'z') {
			;
		} else if (in[0] == 'A' && !beat && n == 10 && in[1] == VERSION && get32(in + 2) && get32(in + 6)) {
			beat = get32(in + 2);
			slow = get32(in + 6);
		} else if (in[0] == 'X' && !next && good_exit((size_t)n)) {
			answer((size_t)n);
		} else if (in[0] == 'B' && beat && n == 1) {
			;
		} else if (in[0] == 'E' && beat && !next && n == 1) {
			if (!envelope)
				end = now() + slow;
			envelope = true;
		} else if (in[0] == 'T' && beat && !next && n >= 2 && n <= 1 + MAX_CHUNK && keep(in + 1, (size_t)n - 1)) {
			;
		} else if (in[0] == 'N' && beat && !next && !text.n && good_next((size_t)n)) {
			next = true;
			memcpy(next_path, in + 4, (size_t)n - 4);
		} else if (in[0] == 'P' && next && n == 3 && get16(in + 1) == 0) {
			become(fd);
		} else {
			say(NONSENSE);
		}
		if (beat)
			quiet = now() + beat;
	}
}

int main(int argc, char **argv)
{
	int64_t begun = now();
	long wait;

	sigaction(SIGPIPE, NULL, &old_pipe);
	signal(SIGPIPE, SIG_IGN);
	if (fcntl(0, F_GETFD) < 0) /* before the next one, whose descriptor may become 0 */
		say(UNREADABLE);
	if (fcntl(1, F_GETFD) < 0 && open("/dev/null", O_WRONLY) < 0)
		_exit(0); /* nobody reads, and the socket must not stand in for who would */
	if (argc < 4)
		say(IMPROPER);
	nargs = argc;
	args = argv;
	privileged = getauxval(AT_SECURE) || getuid() != geteuid() || getgid() != getegid();
	wait = privileged ? -1 : number(getenv("POSTERN_WAIT"), CONNECT_WAIT_MAX);
	if (wait >= 0)
		patience = wait;
	connect_daemon();
	say_hello();
	converse(begun);
}
