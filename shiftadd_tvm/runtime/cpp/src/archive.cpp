#include "archive.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "failure.h"

namespace shiftadd::internal {
namespace {

// A header is one block; contents begin at a multiple of a block, so that parameters stay aligned.
constexpr size_t kBlock = 512;
constexpr size_t kSize = 124, kSizeBytes = 12, kChecksum = 148, kChecksumBytes = 8, kType = 156, kName = 100;

std::string_view until_zero(const unsigned char* field, size_t size) {
  return {reinterpret_cast<const char*>(field), strnlen(reinterpret_cast<const char*>(field), size)};
}

// A number in octal, or (GNU's, for 8 GB and more) in bytes after a first one with its highest bit set.
bool read_number(const unsigned char* field, size_t size, uint64_t& value) {
  value = 0;
  if (field[0] & 0x80) {
    for (size_t i = size - 8; i < size; ++i) value = value << 8 | field[i];
    return std::all_of(field + 1, field + size - 8, [](unsigned char byte) { return byte == 0; });
  }
  size_t digits = 0;
  for (size_t i = 0; i < size && field[i] != 0; ++i) {
    if (field[i] == ' ') continue;
    if (field[i] < '0' || field[i] > '7') return false;
    value = value * 8 + (field[i] - '0');
    ++digits;
  }
  return digits > 0;
}

// The sum of a header's bytes, with its own field as spaces.
uint64_t checksum(const unsigned char* header) {
  uint64_t sum = 0;
  for (size_t i = 0; i < kBlock; ++i) sum += i >= kChecksum && i < kChecksum + kChecksumBytes ? ' ' : header[i];
  return sum;
}

class Archive : public Files {
 public:
  Archive(std::string path, Bytes whole) : path_(std::move(path)), whole_(std::move(whole)) {
    for (size_t at = 0; at + kBlock <= whole_.size && whole_.data[at] != 0;) at = read_entry(at);
    if (entries_.empty()) bad("it holds no files");
  }

  ~Archive() override {
    if (!library_.empty()) unlink(library_.c_str());
  }

  const std::string& path() const override { return path_; }

  Bytes map(const std::string& name) const override {
    const auto found = entries_.find(name);
    if (found == entries_.end()) bad("it holds no " + quoted(name));
    return {whole_.owner, found->second.first, found->second.second};
  }

  // The system opens libraries as files of their own only: a temporary one, for as long as this lives.
  std::string library_path(const std::string& name) const override {
    const Bytes bytes = map(name);
    const char* folder = std::getenv("TMPDIR");
    library_ = std::string(folder && *folder ? folder : "/tmp") + "/shiftadd-" + std::string(6, 'X') + ".so";
    const int file = mkstemps(library_.data(), 3);
    size_t written = 0;
    while (file >= 0 && written < bytes.size) {
      const ssize_t part = write(file, bytes.data + written, bytes.size - written);
      if (part <= 0 && errno != EINTR) break;
      written += part > 0 ? static_cast<size_t>(part) : 0;
    }
    const std::string reason = std::strerror(errno);
    if (file >= 0) close(file);
    if (file < 0 || written < bytes.size) {
      fail(SHIFTADD_ERROR_BAD_FILE, quoted(library_) + " cannot be written: " + reason + "; set TMPDIR to a folder where " +
                                        quoted(name) + " can be put while it is open, or unpack the archive.");
    }
    return library_;
  }

 private:
  [[noreturn]] void bad(const std::string& what) const {
    fail(SHIFTADD_ERROR_BAD_FILE,
         quoted(path_) + " is a file, but no tar archive of an artifact: " + what +
             "; expected an artifact folder, or `tar -cf FILE -C FOLDER .` of one.");
  }

  // Read the header at `at`; return where the next one begins.
  size_t read_entry(size_t at) {
    const unsigned char* header = whole_.data + at;
    uint64_t size = 0, sum = 0;
    if (!read_number(header + kChecksum, kChecksumBytes, sum) || sum != checksum(header) ||
        !read_number(header + kSize, kSizeBytes, size)) {
      bad("there is no header at byte " + std::to_string(at));
    }
    const size_t rest = whole_.size - at - kBlock;
    if (size > rest) bad("a file has " + std::to_string(size) + " bytes, " + std::to_string(rest) + " follow");
    std::string_view name = until_zero(header, kName);
    if (name.substr(0, 2) == "./") name.remove_prefix(2);
    const bool is_file = header[kType] == '0' || header[kType] == 0;
    if (is_file && !entries_.try_emplace(std::string(name), header + kBlock, size).second) {
      bad(quoted(name) + " stands in it twice");
    }
    return at + kBlock + std::min<size_t>((size + kBlock - 1) / kBlock * kBlock, rest);
  }

  std::string path_;
  Bytes whole_;
  std::map<std::string, std::pair<const unsigned char*, size_t>> entries_;
  mutable std::string library_;
};

}  // namespace

std::unique_ptr<Files> open_archive(const std::string& path, Bytes whole) {
  return std::make_unique<Archive>(path, std::move(whole));
}

}  // namespace shiftadd::internal
