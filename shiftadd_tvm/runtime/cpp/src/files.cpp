#include "files.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "archive.h"
#include "failure.h"

namespace shiftadd::internal {
namespace {

struct Descriptor {
  int number;
  ~Descriptor() {
    if (number >= 0) close(number);
  }
};

Bytes map_file(const std::string& path) {
  // a pipe or a device must not block or answer: only a regular file is ever read
  const Descriptor file{open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  struct stat found;
  if (file.number < 0 || fstat(file.number, &found) != 0) {
    fail(SHIFTADD_ERROR_BAD_FILE, quoted(path) + " cannot be read: " + std::strerror(errno) + ".");
  }
  if (!S_ISREG(found.st_mode)) {
    fail(SHIFTADD_ERROR_BAD_FILE, quoted(path) + " is not a regular file; expected a file of an artifact.");
  }
  const size_t size = static_cast<size_t>(found.st_size);
  if (size == 0) return {};
  void* data = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.number, 0);
  if (data == MAP_FAILED) {
    const auto status = errno == ENOMEM ? SHIFTADD_ERROR_NO_MEMORY : SHIFTADD_ERROR_BAD_FILE;
    fail(status, quoted(path) + " cannot be mapped: " + std::strerror(errno) + ".");
  }
  std::shared_ptr<const void> owner(data, [size](const void* p) { munmap(const_cast<void*>(p), size); });
  return {std::move(owner), static_cast<const unsigned char*>(data), size};
}

class Folder : public Files {
 public:
  explicit Folder(std::string path) : path_(std::move(path)) {}
  const std::string& path() const override { return path_; }
  Bytes map(const std::string& name) const override { return map_file(library_path(name)); }
  std::string library_path(const std::string& name) const override { return path_ + "/" + name; }

 private:
  std::string path_;
};

}  // namespace

std::unique_ptr<Files> open_path(const std::string& path) {
  struct stat found;
  const std::string shown = quoted(path);
  if (stat(path.c_str(), &found) != 0) {
    const std::string why = errno == ENOENT ? " does not exist" : std::string(" cannot be read: ") + std::strerror(errno);
    fail(SHIFTADD_ERROR_BAD_FILE, shown + why + "; expected a folder that `shiftadd-tvm compile` wrote.");
  }
  if (!S_ISDIR(found.st_mode)) return open_archive(path, map_file(path));
  return std::make_unique<Folder>(path);
}

}  // namespace shiftadd::internal
