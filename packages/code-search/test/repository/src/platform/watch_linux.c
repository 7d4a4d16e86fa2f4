#include <sys/inotify.h>

/* Tells which files of a folder have changed. */
int watch_folder(const char *path, void (*changed)(const char *)) {
  int queue = inotify_init1(IN_NONBLOCK);
  if (queue < 0) return -1;
  return inotify_add_watch(queue, path, IN_MODIFY | IN_CREATE | IN_DELETE);
}
