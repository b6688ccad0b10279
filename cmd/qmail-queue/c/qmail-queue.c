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
#include "../../internal/shim/c/shim.h"
#include <sys/wait.h>

#ifndef POSTERN_SOCKET_PATH
#define POSTERN_SOCKET_PATH "/run/postern/queue.sock"
#endif

enum { EXIT_TIMEOUT = 52, EXIT_READ = 54, EXIT_CRASHED = 81 };

enum { MAX_ARGS = 1 << 20, MAX_PAIRS = 128 };

enum { /* ms */
#ifdef POSTERN_QUICK /* for tests */
	TOTAL_WAIT = 3000, DRAIN_QUIET = 500, ERROR_WAIT = 500,
#else
	TOTAL_WAIT = 86400000,
	DRAIN_QUIET = 1200000, /* as long as qmail-smtpd waits for its client */
	ERROR_WAIT = 10000, /* for room in the pipe that takes the text */
#endif
};

static struct sigaction old_child;
static struct { int message, envelope; } pairs[MAX_PAIRS]; /* 0: has not come; ours are never 0 */

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

static _Noreturn void fail(enum failure why)
{
	if (why == FAIL_ABSENT || why == FAIL_SLOW)
		silent();
	_exit(EXIT_TEMPORARY);
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

	if (code == 0 || n <= 2)
		return code;
	for (c = channels[dialect]; c->exit; c++) {
		p.fd = c->from_env ? error_fd(c->fd) : c->fd;
		if (!error_pipe(p.fd))
			continue;
		if (n > c->max)
			n = c->max;
		clean(text, n);
		do
			done = poll(&p, 1, ERROR_WAIT) == 1 ? write(p.fd, text, n) : -1;
		while (done < 0 && errno == EINTR);
		return done == (ssize_t)n ? c->exit : code;
	}
	return code;
}

/* become turns this process into the next program, with pair i; it returns if that cannot be. */
static void become(unsigned i)
{
	static char *alone[2];
	char **argv = nargs > 0 ? args : alone;

	argv[0] = next_path;
	if (dup2(pairs[i].message, 0) < 0 || dup2(pairs[i].envelope, 1) < 0)
		return;
	sigaction(SIGPIPE, &old_pipe, NULL);
	sigaction(SIGCHLD, &old_child, NULL);
	execute(argv);
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
		put(5, 0, NOW);
		become(i);
	}
	if (pid > 0) {
		while (waitpid(pid, &status, 0) < 0)
			if (errno != EINTR)
				_exit(EXIT_TEMPORARY);
		sig = WIFSIGNALED(status) ? (unsigned)WTERMSIG(status) : 0;
		code = sig ? EXIT_CRASHED : (unsigned)WEXITSTATUS(status);
	}
	result(i, code, sig, pid > 0 ? (uint32_t)pid : 0);
	return code;
}

static _Noreturn void run(bool wait, unsigned count)
{
	unsigned i, code;

	if (is_loop()) {
		result(0, EXIT_TEMPORARY, 0, 0);
		_exit(EXIT_TEMPORARY);
	}
	if (!wait) {
		become(0);
		result(0, EXIT_TEMPORARY, 0, 0);
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

/* converse follows the daemon's frames until one of them ends the shim. */
static _Noreturn void converse(void)
{
	bool wait = false;
	unsigned count = 0, have = 0, nfds, i;
	int64_t until;
	int fds[2];
	ssize_t n;

	talk.quiet = now() + patience;
	for (;;) {
		until = !count && talk.end < talk.quiet ? talk.end : talk.quiet;
		n = get(until, fds, 2, &nfds);
		if (n < 0 && until == talk.end && until != talk.quiet)
			_exit(talk.envelope ? EXIT_TEMPORARY : EXIT_TIMEOUT);
		if (n <= 0 && !talk.envelope && !count)
			silent();
		if (n <= 0)
			_exit(EXIT_TEMPORARY);
		if (follow((size_t)n, count)) {
			;
		} else if (in[0] == 'X' && !count && good_exit((size_t)n)) {
			_exit(answer(in[1], in[2], in + 5, (size_t)n - 5));
		} else if (in[0] == 'N' && talk.beat && !count && good_next((size_t)n, MAX_PAIRS)) {
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
		if (talk.beat)
			talk.quiet = now() + talk.beat;
	}
}

int main(int argc, char **argv)
{
	struct sigaction ignore = {.sa_handler = SIG_IGN}, normal = {.sa_handler = SIG_DFL};

	talk.end = now() + TOTAL_WAIT;
	if (fcntl(0, F_GETFD) < 0 || fcntl(1, F_GETFD) < 0)
		_exit(EXIT_READ);
	sigaction(SIGPIPE, &ignore, &old_pipe);
	sigaction(SIGCHLD, &normal, &old_child); /* a caller that ignores it would take the exit codes from us */
	begin(argc, argv);
	connect_daemon("POSTERN_SOCKET", POSTERN_SOCKET_PATH);
	say_hello('q', 2, MAX_ARGS, environ);
	converse();
}
