// The files of an artifact, wherever they come from.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

namespace shiftadd::internal {

// Bytes that stay where they are as long as `owner` lives.
struct Bytes {
  std::shared_ptr<const void> owner;
  const unsigned char* data = nullptr;
  size_t size = 0;

  std::string_view text() const { return {reinterpret_cast<const char*>(data), size}; }
};

// The only thing that knows where an artifact lies. Names are plain names of files.
class Files {
 public:
  virtual ~Files() = default;

  // What sentences call the artifact: its path.
  virtual const std::string& path() const = 0;

  // The bytes of a file, mapped, 64-byte aligned, never written. Failure bad file where there is none.
  virtual Bytes map(const std::string& name) const = 0;

  // Where the compiled library can be opened.
  virtual std::string library_path(const std::string& name) const = 0;
};

// The artifact in the folder, or in the tar archive, `path`.
std::unique_ptr<Files> open_path(const std::string& path);

// The artifact that a host names `path` (module.cpp): that; a single library has its own idea.
std::unique_ptr<Files> open_files(const std::string& path);

}  // namespace shiftadd::internal
