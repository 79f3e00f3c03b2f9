// SPDX-License-Identifier: MIT
/* A library that stands between a program and the next definition of two functions; `which` tells who was called. */
#include <dlfcn.h>
#include <stddef.h>

#ifdef SECOND
int which(void);
int which(void)
{
	return 2;
}
#else
int which(void);
int which(void)
{
	int (*next)(void) = (int (*)(void))dlsym(RTLD_NEXT, "which");

	return next ? 10 * next() + 1 : 1;
}

int cuInit(unsigned int flags);
int calls_seen;
int cuInit(unsigned int flags)
{
	int (*next)(unsigned int) = (int (*)(unsigned int))dlsym(RTLD_NEXT, "cuInit");

	calls_seen++;
	return next ? next(flags) : -1;
}
#endif
