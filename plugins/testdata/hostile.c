/*
 * A program that misbehaves, for the tests of what runs other people's programs.
 *
 *	hostile THING [THING ...]
 *
 * does one thing after the other and exits 0. A thing with a number has it behind
 * an equals sign.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

static char block[65536];

/* Writes its number and that of a child to where the test looks for it. */
static void note(void)
{
	const char *name = getenv("HOSTILE_NOTE");
	char line[32];
	int fd, n;

	if (!name || (fd = open(name, O_WRONLY | O_CREAT | O_APPEND, 0666)) < 0)
		return;
	n = snprintf(line, sizeof line, "%ld\n", (long)getpid());
	if (write(fd, line, n) != n)
		_exit(101);
	close(fd);
}

static void sleeping(void)
{
	note();
	for (;;)
		pause();
}

/* A gigabyte, as far as it gets. */
static void flood(int fd)
{
	long left;

	memset(block, 'x', sizeof block);
	block[sizeof block - 1] = '\n';
	for (left = 1L << 30; left > 0; left -= sizeof block)
		if (write(fd, block, sizeof block) < 0)
			return;
}

static void copy(int from, int to, long left)
{
	ssize_t n;

	while (left > 0 && (n = read(from, block, left < (long)sizeof block ? left : (long)sizeof block)) > 0) {
		if (write(to, block, n) != n)
			return;
		left -= n;
	}
}

/* A child that keeps all descriptors, in another session if it shall not be found. */
static void leave(int hidden)
{
	int ready[2];
	char c;

	if (pipe(ready) < 0)
		_exit(102);
	if (fork() == 0) {
		if (hidden && (setsid() < 0 || fork() != 0))
			_exit(0);
		signal(SIGTERM, SIG_IGN);
		signal(SIGHUP, SIG_IGN);
		note();
		if (write(ready[1], "", 1) != 1)
			_exit(103);
		close(ready[0]);
		close(ready[1]);
		for (;;)
			pause();
	}
	close(ready[1]);
	if (read(ready[0], &c, 1) != 1 && !hidden) /* that one may be dead already */
		_exit(104);
	close(ready[0]);
}

static void eat(void)
{
	for (;;) {
		char *p = malloc(1 << 20);

		if (!p)
			_exit(111);
		memset(p, 1, 1 << 20);
	}
}

int main(int argc, char **argv)
{
	int i, fd;

	for (i = 1; i < argc; i++) {
		const char *equals = strchr(argv[i], '=');
		long n = equals ? atol(equals + 1) : 0;
		int len = equals ? (int)(equals - argv[i]) : (int)strlen(argv[i]);

#define IS(word) ((int)strlen(word) == len && !strncmp(argv[i], word, len))
		if (IS("exit")) {
			_exit(n);
		} else if (IS("crash")) {
			raise(n ? n : SIGSEGV);
		} else if (IS("hang")) {
			sleeping();
		} else if (IS("deaf")) {
			for (fd = 1; fd < 32; fd++)
				signal(fd, SIG_IGN);
			sleeping();
		} else if (IS("stop")) {
			note();
			raise(SIGSTOP);
		} else if (IS("spin")) {
			for (;;)
				;
		} else if (IS("flood")) {
			flood(n);
		} else if (IS("deaflood")) { /* that does not hear that it is too much */
			signal(SIGXFSZ, SIG_IGN);
			flood(n);
		} else if (IS("grow")) { /* without writing a byte */
			if (ftruncate(n, 1L << 40) < 0)
				_exit(105);
		} else if (IS("copy")) { /* so many bytes of what it reads; 0: all */
			copy(0, 1, n ? n : 1L << 60);
		} else if (IS("read")) {
			while (read(n, block, sizeof block) > 0)
				;
		} else if (IS("say")) { /* behind a comma */
			const char *text = strchr(argv[i], ',');
			if (text && write(n, text + 1, strlen(text + 1)) < 0)
				_exit(106);
		} else if (IS("cut")) {
			if (ftruncate(n, 0) < 0)
				_exit(107);
		} else if (IS("close")) {
			for (fd = 0; fd < 1024; fd++)
				close(fd);
		} else if (IS("closefd")) {
			close(n);
		} else if (IS("leave")) {
			leave(0);
		} else if (IS("hide")) {
			leave(1);
		} else if (IS("eat")) {
			eat();
		} else if (IS("fork")) { /* so many children */
			while (n-- > 0)
				if (fork() == 0)
					sleeping();
		} else if (IS("starter")) { /* kills who has started it */
			kill(getppid(), SIGKILL);
			sleeping();
		} else {
			fprintf(stderr, "hostile: no such thing: %s\n", argv[i]);
			return 100;
		}
	}
	_exit(0);
}
