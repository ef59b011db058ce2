// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
// Lets isochron run on interfaces without hardware time stamps. Its receiver ends without these three, and uses none of them
// when its sender has --omit-sync:
//   - the request to switch hardware time stamps on (SIOCSHWTSTAMP, Documentation/networking/timestamping.rst),
//   - the number of the interface's hardware clock (ETHTOOL_GET_TS_INFO),
//   - the device of that clock, of which it reads the time.
// Here the first succeeds and does nothing, and the clock is CLOCK_TAI. The kernel's time stamps and those of isochron's own
// program stay what they are. Built and loaded by the script `isochron`.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/ethtool.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <stdarg.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

// The number of a clock that no host has.
#define CLOCK_INDEX 4095
#define CLOCK_DEVICE "/dev/ptp4095"

int ioctl(int fd, unsigned long request, ...)
{
	va_list list;
	void *argument;
	int result;

	va_start(list, request);
	argument = va_arg(list, void *);
	va_end(list);
	result = syscall(SYS_ioctl, fd, request, argument);
	// ERANGE: the card stamps some packets, but not all of them (such as an Intel 82576).
	if (request == SIOCSHWTSTAMP && result < 0 && (errno == EOPNOTSUPP || errno == ERANGE))
		return 0;
	if (request == SIOCETHTOOL && result == 0) {
		struct ethtool_ts_info *info = (void *)((struct ifreq *)argument)->ifr_data;

		if (info->cmd == ETHTOOL_GET_TS_INFO && info->phc_index < 0)
			info->phc_index = CLOCK_INDEX;
	}
	return result;
}

static int open_at(const char *path, int flags, mode_t mode)
{
	if (strcmp(path, CLOCK_DEVICE) == 0)
		path = "/dev/null";
	return syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}

int open(const char *path, int flags, ...)
{
	va_list list;
	mode_t mode = 0;

	if (flags & (O_CREAT | __O_TMPFILE)) {
		va_start(list, flags);
		mode = va_arg(list, mode_t);
		va_end(list);
	}
	return open_at(path, flags, mode);
}

int open64(const char *path, int flags, ...) __attribute__((alias("open")));

// A clock of a device has a negative number (clock_getcpuclockid(3), FD_TO_CLOCKID).
int clock_gettime(clockid_t clock, struct timespec *time)
{
	static int (*real)(clockid_t, struct timespec *);

	if (!real)
		real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
	return real(clock < 0 ? CLOCK_TAI : clock, time);
}
