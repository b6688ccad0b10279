/* The least that makes a message safe as qmail-queue does, a file a message:
   write the message and the envelope to files of their own, flush both, link
   the message to its name, and flush the directories. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static const char *dir;

/* copies a descriptor to a new file and flushes that. */
static void copy(int from, const char *name)
{
	static char b[4096];
	ssize_t n;
	int to = open(name, O_WRONLY | O_CREAT | O_EXCL, 0600);

	if (to < 0)
		_exit(53);
	while ((n = read(from, b, sizeof b)) > 0)
		if (write(to, b, (size_t)n) != n)
			_exit(53);
	if (n < 0)
		_exit(54);
	if (fsync(to) < 0 || close(to) < 0)
		_exit(53);
}

static void flush(const char *sub)
{
	char name[4200];
	int fd;

	snprintf(name, sizeof name, "%s/%s", dir, sub);
	fd = open(name, O_RDONLY | O_DIRECTORY);
	if (fd < 0 || fsync(fd) < 0)
		_exit(53);
}

int main(void)
{
	char pid[4200], mess[4200], intd[4200], todo[4200];
	int id = (int)getpid();

	dir = getenv("QUEUE_DIR");
	if (!dir)
		_exit(61);
	snprintf(pid, sizeof pid, "%s/pid/%d", dir, id);
	snprintf(mess, sizeof mess, "%s/mess/%d", dir, id);
	snprintf(intd, sizeof intd, "%s/intd/%d", dir, id);
	snprintf(todo, sizeof todo, "%s/todo/%d", dir, id);
	copy(0, pid);
	if (rename(pid, mess) < 0)
		_exit(65);
	flush("mess");
	copy(1, intd);
	if (rename(intd, todo) < 0)
		_exit(66);
	flush("todo");
	_exit(0);
}
