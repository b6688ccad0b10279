/*
 * qmail-queue for Postern: hands the caller's descriptors 0 and 1, its arguments and its environment to the daemon, waits,
 * and exits as the daemon says. It parses nothing of the message. The format of the frames, the times and what ends a
 * conversation are written down in pipeline/ingress/handoff/wire/doc.go; main.go beside this folder is the same in Go.
 *
 *   cc -O2 -Wall -Wextra -static -DPOSTERN_SOCKET_PATH='"/run/postern/queue.sock"' -o qmail-queue qmail-queue.c
 *
 * Two rules hold everywhere: a failure of ours is exit 71, which callers take as temporary; and each descriptor of ours
 * is close-on-exec, so that one without that flag is the caller's.
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
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef POSTERN_SOCKET_PATH
#define POSTERN_SOCKET_PATH "/run/postern/queue.sock"
#endif

enum { EXIT_TIMEOUT = 52, EXIT_READ = 54, EXIT_TEMPORARY = 71, EXIT_CRASHED = 81 };

enum {
	VERSION = 1, FLAG_CUT = 1, FLAG_PRIVILEGED = 2, DIALECTS = 6,
	HELLO_HEAD = 18, MAX_CHUNK = 16384, MAX_PACKET = HELLO_HEAD + MAX_CHUNK,
	MAX_ARGS = 1 << 20, MAX_ENV = 64 << 10, MAX_TEXT = 1023, MAX_PATH = 4096, MAX_PAIRS = 128, MAX_HOPS = 5,
	CONNECT_WAIT = 10000, CONNECT_WAIT_MAX = 60000, /* ms */
};

enum { /* ms */
#ifdef POSTERN_QUICK /* for tests */
	TOTAL_WAIT = 3000, DRAIN_QUIET = 500, ERROR_WAIT = 500,
#else
	TOTAL_WAIT = 86400000,
	DRAIN_QUIET = 1200000, /* as long as qmail-smtpd waits for its client */
	ERROR_WAIT = 10000, /* for room in the pipe that takes the text */
#endif
};

static const int64_t NOW = -1;

static char **args;
static int nargs;
static bool privileged;
static int64_t patience = CONNECT_WAIT;
static int sock = -1;
static struct sigaction old_pipe, old_child;

static unsigned char out[MAX_PACKET], in[MAX_PACKET];

static struct { int message, envelope; } pairs[MAX_PAIRS]; /* 0: has not come; ours are never 0 */
static char next_path[MAX_PATH];

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

static bool is_pipe(int fd, bool sockets_too)
{
	struct stat st;

	return fstat(fd, &st) == 0 && (S_ISFIFO(st.st_mode) || (sockets_too && S_ISSOCK(st.st_mode)));
}

/* drain hangs up and then reads what the caller still writes: a daemon that is stopped holds the reading ends too, as
 * some callers do themselves, so our exit would leave the caller blocked in write(). Only after the socket is closed, so that a daemon that wakes up
 * knows that the message may have a hole. */
static void drain(void)
{
	struct pollfd p[2] = {{.fd = is_pipe(0, true) ? 0 : -1, .events = POLLIN}, {.fd = is_pipe(1, true) ? 1 : -1, .events = POLLIN}};
	ssize_t n;
	int i;

	close(sock);
	while (p[0].fd >= 0 || p[1].fd >= 0) {
		i = poll(p, 2, DRAIN_QUIET);
		if (i < 0 && errno == EINTR)
			continue;
		if (i <= 0)
			return;
		for (i = 0; i < 2; i++) {
			if (p[i].fd < 0 || !p[i].revents)
				continue;
			n = read(i, in, sizeof in);
			if (n == 0 || (n < 0 && errno != EINTR && errno != EAGAIN))
				p[i].fd = -1;
		}
	}
}

/* silent ends the shim when there is no answer, and the caller may still be writing. */
static _Noreturn void silent(void)
{
	drain();
	_exit(EXIT_TEMPORARY);
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

/* put sends a frame, until a time, or only if that can be at once (NOW). False: the daemon has hung up, and what it said
 * last is still to be read; or the frame could not be sent at once. */
static bool put(size_t n, bool descriptors, int64_t until)
{
	union { struct cmsghdr align; char space[CMSG_SPACE(2 * sizeof(int))]; } control;
	struct iovec v = {.iov_base = out, .iov_len = n};
	struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1};
	struct cmsghdr *c;

	if (descriptors) {
		memset(&control, 0, sizeof control);
		m.msg_control = control.space;
		m.msg_controllen = sizeof control.space;
		c = CMSG_FIRSTHDR(&m);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(2 * sizeof(int));
		memcpy(CMSG_DATA(c), (int[2]){0, 1}, 2 * sizeof(int));
	}
	while (sendmsg(sock, &m, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) {
		if (errno == EINTR)
			continue;
		if (until == NOW || errno == EPIPE || errno == ECONNRESET)
			return false;
		if (errno != EAGAIN)
			_exit(EXIT_TEMPORARY);
		if (!ready(POLLOUT, until))
			silent();
	}
	return true;
}

/* get receives a frame into in; 0: the daemon is gone or sent what cannot be; -1: the time is up. */
static ssize_t get(int64_t until, int fds[2], int *nfds)
{
	union { struct cmsghdr align; char space[CMSG_SPACE(2 * sizeof(int))]; } control;
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
	*nfds = 0;
	for (c = CMSG_FIRSTHDR(&m); c; c = CMSG_NXTHDR(&m, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS || *nfds || c->cmsg_len > CMSG_LEN(2 * sizeof(int)))
			return 0;
		*nfds = (int)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
		memcpy(fds, CMSG_DATA(c), (size_t)*nfds * sizeof(int));
	}
	if ((m.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) || (*nfds && (in[0] != 'P' || *nfds != 2)))
		return 0;
	return n;
}

/* connect_daemon tries for as long as patience lasts. A full backlog (EAGAIN, since the socket does not block) is as
 * good as a missing daemon. */
static void connect_daemon(void)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	const char *path = privileged ? NULL : getenv("POSTERN_SOCKET");
	int64_t until = now() + patience, left, pause = 100;

	if (!path || !*path)
		path = POSTERN_SOCKET_PATH;
	if (strlen(path) >= sizeof a.sun_path)
		_exit(EXIT_TEMPORARY);
	strcpy(a.sun_path, path);
	for (;;) {
		sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
		if (sock >= 0 && connect(sock, (struct sockaddr *)&a, sizeof a) == 0)
			return;
		if (sock >= 0)
			close(sock);
		left = until - now();
		if (left <= 0) {
			sock = -1;
			silent();
		}
		poll(NULL, 0, (int)(left < pause ? left : pause));
		pause = pause < 1000 ? pause * 3 / 2 : 1000;
	}
}

/* stream adds bytes to the hello, and sends it, and what goes on from it, whenever it is full. */
static struct { size_t n, max; bool first, hung_up; int64_t until; } hello;

static void stream_flush(void)
{
	if (!hello.hung_up && !put(hello.n, hello.first, hello.until))
		hello.hung_up = true;
	hello.first = false;
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

static void say_hello(void)
{
	size_t length, args_len = 0, env_len = 0, sent = 0;
	bool cut = false;
	char **e;
	int i;

	for (i = 0; i < nargs; i++) {
		args_len += strlen(args[i]) + 1;
		if (args_len > MAX_ARGS || nargs > 65535)
			_exit(EXIT_TEMPORARY);
	}
	for (e = environ; *e; e++) {
		length = strlen(*e) + 1;
		if (length > MAX_ENV - env_len)
			cut = true;
		else
			env_len += length;
	}
	out[0] = 'H';
	out[1] = VERSION;
	out[2] = 'q';
	out[3] = (cut ? FLAG_CUT : 0) | (privileged ? FLAG_PRIVILEGED : 0);
	put32(out + 4, (uint32_t)getppid());
	put16(out + 8, (uint32_t)nargs);
	put32(out + 10, (uint32_t)args_len);
	put32(out + 14, (uint32_t)env_len);
	hello.n = HELLO_HEAD;
	hello.max = MAX_PACKET;
	hello.first = true;
	hello.until = now() + patience;
	for (i = 0; i < nargs; i++)
		stream(args[i], strlen(args[i]) + 1);
	for (e = environ; *e; e++) {
		length = strlen(*e) + 1;
		if (length > MAX_ENV - sent)
			continue;
		sent += length;
		stream(*e, length);
	}
	stream_flush();
}

/* The dialects of custom error texts; see wire.Dialect. */
struct channel { int fd; bool from_env; unsigned char exit; size_t max; };
static const struct channel channels[DIALECTS][4] = {
	{{-1, true, 88, 255}, {6, false, 82, 255}, {4, false, 82, 255}}, /* auto */
	{{4, false, 82, 255}}, /* netqmail */
	{{6, false, 82, 255}}, /* notqmail */
	{{4, true, 82, 255}}, /* sagredo */
	{{2, true, 88, MAX_TEXT}}, /* indimail */
	{{0}}, /* none */
};

/* error_pipe reports whether fd is the writing end of a pipe that the caller left open for us. */
static bool error_pipe(int fd)
{
	int flags;

	if (fd < 2 || fcntl(fd, F_GETFD) != 0 || !is_pipe(fd, false))
		return false;
	flags = fcntl(fd, F_GETFL);
	return flags >= 0 && (flags & O_ACCMODE) != O_RDONLY;
}

static int error_fd(int otherwise)
{
	const char *s = getenv("ERROR_FD");
	long n = number(s, 1 << 20);

	if (s && strcmp(s, "-1") == 0)
		return -1;
	return n < 0 ? otherwise : (int)n;
}

/* answer tells the text, if it can, and returns the exit code. */
static int answer(unsigned char code, unsigned dialect, unsigned char *text, size_t n)
{
	const struct channel *c;
	struct pollfd p = {.events = POLLOUT};
	ssize_t done;
	size_t i;

	if (code == 0 || n <= 2)
		return code;
	for (c = channels[dialect]; c->exit; c++) {
		p.fd = c->from_env ? error_fd(c->fd) : c->fd;
		if (!error_pipe(p.fd))
			continue;
		if (n > c->max)
			n = c->max;
		for (i = 0; i < n; i++)
			if (text[i] < 0x20 || text[i] > 0x7e)
				text[i] = '?';
		do
			done = poll(&p, 1, ERROR_WAIT) == 1 ? write(p.fd, text, n) : -1;
		while (done < 0 && errno == EINTR);
		return done == (ssize_t)n ? c->exit : code;
	}
	return code;
}

/* report says how a run ended, if the daemon can hear it: the exit code is the main program's in any case. */
static void report(unsigned index, unsigned exit, unsigned sig, uint32_t pid)
{
	out[0] = 'R';
	put16(out + 1, index);
	out[3] = exit & 255;
	out[4] = sig & 255;
	put32(out + 5, pid);
	put(9, false, NOW);
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

/* become turns this process into the next program, with pair i; it returns if that cannot be. */
static void become(unsigned i)
{
	static char hop[] = "POSTERN_HOPS=0", *alone[2];
	size_t n = 0;
	char **e, **argv = nargs > 0 ? args : alone;

	for (e = environ; *e; e++)
		n++;
	char *env[n + 2]; /* fits: execve() takes no more than a quarter of the stack for arguments and environment */
	for (n = 0, e = environ; *e; e++)
		if (strncmp(*e, "POSTERN_HOPS=", 13) != 0)
			env[n++] = *e;
	hop[13] = (char)('1' + hops());
	env[n++] = hop;
	env[n] = NULL;
	argv[0] = next_path;
	if (dup2(pairs[i].message, 0) < 0 || dup2(pairs[i].envelope, 1) < 0)
		return;
	sigaction(SIGPIPE, &old_pipe, NULL);
	sigaction(SIGCHLD, &old_child, NULL);
	execve(next_path, argv, env);
}

/* hide_error_pipes keeps the copies from holding open what the caller reads to its end. */
static void hide_error_pipes(void)
{
	int fds[3] = {4, 6, error_fd(-1)}, i;

	for (i = 0; i < 3; i++)
		if (fds[i] > 2 && error_pipe(fds[i]))
			fcntl(fds[i], F_SETFD, FD_CLOEXEC);
}

/* run_one runs the next program with pair i, waits, reports, and returns its exit code. */
static unsigned run_one(unsigned i, bool only)
{
	unsigned code = EXIT_TEMPORARY, sig = 0;
	int status;
	pid_t pid = fork();

	if (pid == 0) {
		become(i);
		_exit(EXIT_TEMPORARY);
	}
	if (pid < 0 && only) {
		out[0] = 'F';
		put32(out + 1, (uint32_t)getpid());
		put(5, false, NOW);
		become(i);
	}
	if (pid > 0) {
		while (waitpid(pid, &status, 0) < 0)
			if (errno != EINTR)
				_exit(EXIT_TEMPORARY);
		sig = WIFSIGNALED(status) ? (unsigned)WTERMSIG(status) : 0;
		code = sig ? EXIT_CRASHED : (unsigned)WEXITSTATUS(status);
	}
	report(i, code, sig, pid > 0 ? (uint32_t)pid : 0);
	return code;
}

static _Noreturn void run(bool wait, unsigned count)
{
	unsigned i, code;

	if (hops() >= MAX_HOPS || is_self(next_path)) {
		report(0, EXIT_TEMPORARY, 0, 0);
		_exit(EXIT_TEMPORARY);
	}
	if (!wait) {
		become(0);
		report(0, EXIT_TEMPORARY, 0, 0);
		_exit(EXIT_TEMPORARY);
	}
	code = run_one(0, count == 1);
	if (code == 0 && count > 1) {
		hide_error_pipes();
		for (i = 1; i < count; i++)
			run_one(i, false);
	}
	_exit((int)code);
}

static bool good_exit(size_t n)
{
	size_t length = n >= 5 ? get16(in + 3) : 0;

	return n >= 5 && n == 5 + length && length <= MAX_TEXT && in[2] < DIALECTS && (!length || in[5] == 'D' || in[5] == 'Z');
}

static bool good_next(size_t n)
{
	unsigned count = n >= 6 ? get16(in + 2) : 0;

	return n >= 6 && n <= 4 + MAX_PATH && in[1] <= 1 && count >= 1 && count <= (in[1] ? MAX_PAIRS : 1) && in[4] == '/' &&
		memchr(in + 4, 0, n - 4) == in + n - 1;
}

/* converse follows the daemon's frames until one of them ends the shim. */
static _Noreturn void converse(int64_t begun)
{
	int64_t quiet = now() + patience, end = begun + TOTAL_WAIT, until;
	uint32_t beat = 0, slow = 0;
	bool envelope = false, wait = false;
	unsigned count = 0, have = 0, i;
	int fds[2], nfds;
	ssize_t n;

	for (;;) {
		until = !count && end < quiet ? end : quiet;
		n = get(until, fds, &nfds);
		if (n < 0 && until == end && until != quiet)
			_exit(envelope ? EXIT_TEMPORARY : EXIT_TIMEOUT);
		if (n <= 0 && !envelope && !count)
			silent();
		if (n <= 0)
			_exit(EXIT_TEMPORARY);
		if (in[0] >= 'a' && in[0] <= 'z') {
			;
		} else if (in[0] == 'A' && !beat && n == 10 && in[1] == VERSION && get32(in + 2) && get32(in + 6)) {
			beat = get32(in + 2);
			slow = get32(in + 6);
		} else if (in[0] == 'X' && !count && good_exit((size_t)n)) {
			_exit(answer(in[1], in[2], in + 5, (size_t)n - 5));
		} else if (in[0] == 'B' && beat && n == 1) {
			;
		} else if (in[0] == 'E' && beat && !count && n == 1) {
			if (!envelope)
				end = now() + slow;
			envelope = true;
		} else if (in[0] == 'N' && beat && !count && good_next((size_t)n)) {
			wait = in[1];
			count = get16(in + 2);
			memcpy(next_path, in + 4, (size_t)n - 4);
		} else if (in[0] == 'P' && count && n == 3 && nfds == 2 && (i = get16(in + 1)) < count && !pairs[i].message) {
			pairs[i].message = fds[0];
			pairs[i].envelope = fds[1];
			if (++have == count)
				run(wait, count);
		} else {
			_exit(EXIT_TEMPORARY);
		}
		if (beat)
			quiet = now() + beat;
	}
}

int main(int argc, char **argv)
{
	struct sigaction ignore = {.sa_handler = SIG_IGN}, normal = {.sa_handler = SIG_DFL};
	int64_t begun = now();
	long wait;

	if (fcntl(0, F_GETFD) < 0 || fcntl(1, F_GETFD) < 0)
		_exit(EXIT_READ);
	nargs = argc;
	args = argv;
	sigaction(SIGPIPE, &ignore, &old_pipe);
	sigaction(SIGCHLD, &normal, &old_child); /* a caller that ignores it would take the exit codes from us */
	privileged = getauxval(AT_SECURE) || getuid() != geteuid() || getgid() != getegid();
	wait = privileged ? -1 : number(getenv("POSTERN_WAIT"), CONNECT_WAIT_MAX);
	if (wait >= 0)
		patience = wait;
	connect_daemon();
	say_hello();
	converse(begun);
}
