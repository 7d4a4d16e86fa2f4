#include <windows.h>

/* Tells which files of a folder have changed: watch a folder for file changes. */
int watch_folder(const wchar_t *path, void (*changed)(const wchar_t *)) {
  HANDLE folder = CreateFileW(path, FILE_LIST_DIRECTORY, FILE_SHARE_READ, NULL, OPEN_EXISTING, 0, NULL);
  if (folder == INVALID_HANDLE_VALUE) return -1;
  return ReadDirectoryChangesW(folder, buffer, size, TRUE, FILE_NOTIFY_CHANGE_FILE_NAME, NULL, NULL, NULL);
}
