/* SPDX-License-Identifier: Apache-2.0
   Answers as file systems do that lack the feature named by the variable LACKS. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int lacks(const char *feature) {
    const char *all = getenv("LACKS");
    return all && strstr(all, feature);
}

#define NEXT(type, name) ((type)dlsym(RTLD_NEXT, name))
#define FAIL(code) do { errno = code; return -1; } while (0)

int flock(int file, int operation) {
    if (lacks("flock:none")) FAIL(ENOSYS);
    if (lacks("flock:nfs")) FAIL(EBADF);
    if (lacks("flock:full")) FAIL(ENOLCK);
    return NEXT(int (*)(int, int), "flock")(file, operation);
}

int symlink(const char *target, const char *name) {
    if (lacks("symlink")) FAIL(EPERM);
    return NEXT(int (*)(const char *, const char *), "symlink")(target, name);
}

int link(const char *target, const char *name) {
    if (lacks("hardlink")) FAIL(ENOTSUP);
    return NEXT(int (*)(const char *, const char *), "link")(target, name);
}

int linkat(int a, const char *target, int b, const char *name, int flags) {
    if (lacks("hardlink")) FAIL(ENOTSUP);
    return NEXT(int (*)(int, const char *, int, const char *, int), "linkat")(a, target, b, name, flags);
}

int fsync(int file) {
    struct stat status;
    if (lacks("fsync:all")) FAIL(ENOSYS);
    if (lacks("fsync:folder") && !fstat(file, &status) && S_ISDIR(status.st_mode)) FAIL(EINVAL);
    return NEXT(int (*)(int), "fsync")(file);
}

int chmod(const char *path, mode_t mode) {
    if (lacks("chmod")) FAIL(EPERM);
    return NEXT(int (*)(const char *, mode_t), "chmod")(path, mode);
}

int rename(const char *old, const char *new) {
    struct stat status;
    if (lacks("rename:over") && !stat(new, &status) && S_ISREG(status.st_mode)) FAIL(EEXIST);
    if (lacks("rename:folder") && !stat(old, &status) && S_ISDIR(status.st_mode)) FAIL(ENOSYS);
    if (lacks("rename:any")) FAIL(ENOSYS);
    return NEXT(int (*)(const char *, const char *), "rename")(old, new);
}
