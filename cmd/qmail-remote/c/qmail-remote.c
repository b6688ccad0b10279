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
#include "../../internal/shim/c/shim.h"

#ifndef POSTERN_REMOTE_SOCKET_PATH
#define POSTERN_REMOTE_SOCKET_PATH "/run/postern/remote.sock"
#endif

enum {
	MAX_ARGS = 2 << 20, MAX_REPORT = 1 << 20,
#ifdef POSTERN_QUICK /* for tests */
	READ_WAIT = 3000,
#else
	READ_WAIT = 3600000, /* for the daemon to have read the message */
#endif
};

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

static struct { unsigned char *s; size_t n, room; } text;

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

static _Noreturn void fail(enum failure why)
{
	switch (why) {
	case FAIL_ARGUMENTS:
		say(TOO_LONG);
	case FAIL_PATH:
	case FAIL_ABSENT:
		say(NO_DAEMON);
	case FAIL_SLOW:
		say(SLOW);
	default:
		say(DIED);
	}
}

/* become turns this process into the next program. */
static _Noreturn void become(int message)
{
	bool loop = is_loop();

	if (!loop && dup2(message, 0) == 0) {
		sigaction(SIGPIPE, &old_pipe, NULL);
		execute(args);
		signal(SIGPIPE, SIG_IGN);
	}
	result(0, EXIT_TEMPORARY, 0, 0);
	if (loop)
		say(LOOP);
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
	if (text.n && in[1] == 0 && text.s[text.n - 1] == 0)
		report(text.s, text.n);
	if (text.n || n <= 5)
		say(NONSENSE);
	clean(in + 5, n - 5);
	in[n] = '\n'; /* there is room: MAX_TEXT is less than a chunk */
	in[n + 1] = 0;
	report(in + 5, n - 5 + 2);
}

/* converse follows the daemon's frames until one of them ends the shim. */
static _Noreturn void converse(void)
{
	bool next = false;
	unsigned nfds;
	int64_t until;
	ssize_t n;
	int fd = -1;

	talk.quiet = now() + patience;
	for (;;) {
		until = !next && talk.end < talk.quiet ? talk.end : talk.quiet;
		n = get(until, &fd, 1, &nfds);
		if (n < 0)
			say(SLOW);
		if (n == 0 || (in[0] == 'P' && !nfds))
			say(DIED);
		if (follow((size_t)n, next)) {
			;
		} else if (in[0] == 'X' && !next && good_exit((size_t)n)) {
			answer((size_t)n);
		} else if (in[0] == 'T' && talk.beat && !next && n >= 2 && n <= 1 + MAX_CHUNK && keep(in + 1, (size_t)n - 1)) {
			;
		} else if (in[0] == 'N' && talk.beat && !next && !text.n && good_next((size_t)n, 1) && !in[1]) {
			next = true;
			memcpy(next_path, in + 4, (size_t)n - 4);
		} else if (in[0] == 'P' && next && n == 3 && get16(in + 1) == 0) {
			become(fd);
		} else {
			say(NONSENSE);
		}
		if (talk.beat)
			talk.quiet = now() + talk.beat;
	}
}

int main(int argc, char **argv)
{
	static char *nothing[1]; /* of the environment: nothing in it is used */

	talk.end = now() + READ_WAIT;
	sigaction(SIGPIPE, NULL, &old_pipe);
	signal(SIGPIPE, SIG_IGN);
	if (fcntl(0, F_GETFD) < 0) /* before the next one, whose descriptor may become 0 */
		say(UNREADABLE);
	if (fcntl(1, F_GETFD) < 0 && open("/dev/null", O_WRONLY) < 0)
		_exit(0); /* nobody reads, and the socket must not stand in for who would */
	if (argc < 4)
		say(IMPROPER);
	begin(argc, argv);
	connect_daemon("POSTERN_REMOTE_SOCKET", POSTERN_REMOTE_SOCKET_PATH);
	say_hello('r', 1, MAX_ARGS, nothing);
	converse();
}
