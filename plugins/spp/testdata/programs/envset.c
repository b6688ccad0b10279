/* [connection], [mail]: sets what others read. */
#include <stdio.h>
#include <stdlib.h>

int main(void)
{
	const char *ip = getenv("TCPREMOTEIP"), *was = getenv("visits");
	int visits = was ? atoi(was) : 0;

	printf("Svisits=%d\n", visits + 1);
	printf("UMAXRCPT\nSMAXRCPT=2\n");
	printf("HX-Visit: %d of %s", visits + 1, ip ? ip : "nobody"); /* no line end */
	return 0;
}
