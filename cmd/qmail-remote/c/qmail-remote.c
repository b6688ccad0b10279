/*
 * qmail-remote for Postern: says that the daemon does not take outgoing mail from qmail-rspawn, in the form that
 * qmail-rspawn reads. It exits 0 whatever happens, as qmail-rspawn makes a bounce of almost every other code.
 * main.go beside this folder is the same in Go.
 *
 *   cc -O2 -Wall -Wextra -static -o qmail-remote qmail-remote.c
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

/* Each is one message report: a letter, a line, a NUL. */
static const char improper[] = "DI (qmail-remote) was invoked improperly. (#5.3.5)\n";
static const char unserved[] = "Zpostern: no daemon takes outgoing mail from qmail-remote here yet. (#4.3.0)\n";

/* report writes all n bytes to stdout, for as long as somebody reads them. */
static void report(const char *s, size_t n)
{
	struct pollfd p = {.fd = 1, .events = POLLOUT};
	ssize_t done;

	while (n > 0) {
		done = write(1, s, n);
		if (done >= 0) {
			s += done;
			n -= (size_t)done;
		} else if (errno == EAGAIN) {
			poll(&p, 1, -1);
		} else if (errno != EINTR) {
			return;
		}
	}
}

int main(int argc, char **argv)
{
	(void)argv;
	signal(SIGPIPE, SIG_IGN);
	if (argc < 4)
		report(improper, sizeof improper);
	else
		report(unserved, sizeof unserved);
	_exit(0);
}
