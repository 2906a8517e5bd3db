/* SPDX-License-Identifier: Apache-2.0
 *
 * A library to preload. It sets the process's wall clock forward by $SKEW seconds, which may
 * be negative. Clocks that only measure durations stay as they are.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>

static time_t skew(void)
{
	const char *text = getenv("SKEW");

	return text ? atol(text) : 0;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
	static int (*real)(clockid_t, struct timespec *);
	int result;

	if (!real)
		real = dlsym(RTLD_NEXT, "clock_gettime");
	result = real(clock, now);
	if (!result && clock == CLOCK_REALTIME)
		now->tv_sec += skew();
	return result;
}

time_t time(time_t *result)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	if (result)
		*result = now.tv_sec;
	return now.tv_sec;
}
