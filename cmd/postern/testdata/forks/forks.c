/* The programs that BenchmarkMailfront compares the shim with, by the name that
 * they are called by:
 *
 *   queue  plays qmail-queue: reads message and envelope, and takes them.
 *   pass   is a filter that changes nothing: copies its input to its output.
 *   chain  runs $FILTERS copies of pass one after the other, each with the
 *          output of the one before in a file without a name, and then queue.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static char buffer[65536];

static int copy(int from, int to)
{
	ssize_t n, put;

	while ((n = read(from, buffer, sizeof buffer)) > 0)
		for (ssize_t at = 0; to >= 0 && at < n; at += put)
			if ((put = write(to, buffer + at, n - at)) <= 0)
				return -1;
	return n < 0 ? -1 : 0;
}

static int nameless(void)
{
	char name[] = "/tmp/chain-XXXXXX";
	int fd = mkstemp(name);

	if (fd >= 0)
		unlink(name);
	return fd;
}

static void sibling(const char *self, const char *name)
{
	char path[4096];
	const char *slash = strrchr(self, '/');
	size_t dir = slash ? (size_t)(slash - self) + 1 : 0;

	if (dir + strlen(name) + 1 > sizeof path)
		_exit(71);
	memcpy(path, self, dir);
	strcpy(path + dir, name);
	execl(path, path, (char *)0);
	_exit(71);
}

static int chain(const char *self)
{
	int in = nameless(), status;

	if (in < 0 || copy(0, in) < 0)
		return 54;
	for (int left = atoi(getenv("FILTERS")); left > 0; left--) {
		int out = nameless();
		pid_t child;

		if (out < 0 || lseek(in, 0, SEEK_SET) < 0 || (child = fork()) < 0)
			return 71;
		if (child == 0) {
			dup2(in, 0);
			dup2(out, 1);
			sibling(self, "pass");
		}
		if (waitpid(child, &status, 0) < 0 || status != 0)
			return 71;
		close(in);
		in = out;
	}
	if (lseek(in, 0, SEEK_SET) < 0 || dup2(in, 0) < 0)
		return 71;
	sibling(self, "queue");
	return 71;
}

int main(int argc, char **argv)
{
	const char *slash = argc > 0 ? strrchr(argv[0], '/') : 0, *name = slash ? slash + 1 : "";

	if (!strcmp(name, "pass"))
		return copy(0, 1) < 0 ? 54 : 0;
	if (!strcmp(name, "chain"))
		return chain(argv[0]);
	return copy(0, -1) < 0 || copy(1, -1) < 0 ? 54 : 0;
}
