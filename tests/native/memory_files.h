// An artifact in memory, for tests of the loader.
#pragma once

#include <map>
#include <string>

#include "failure.h"
#include "files.h"

class MemoryFiles : public shiftadd::internal::Files {
 public:
  explicit MemoryFiles(std::map<std::string, std::string> contents) : contents_(std::move(contents)) {}

  const std::string& path() const override { return path_; }

  // A copy in memory of just its size, aligned as a mapping is: reading beyond it is an error.
  shiftadd::internal::Bytes map(const std::string& name) const override {
    const auto found = contents_.find(name);
    if (found == contents_.end()) shiftadd::internal::fail(SHIFTADD_ERROR_BAD_FILE, name + " is missing.");
    const size_t size = found->second.size();
    if (size == 0) return {};
    void* data = nullptr;
    if (posix_memalign(&data, 4096, size) != 0) throw std::bad_alloc();
    std::shared_ptr<const void> owner(data, [](const void* p) { free(const_cast<void*>(p)); });
    found->second.copy(static_cast<char*>(data), size);
    return {owner, static_cast<const unsigned char*>(data), size};
  }

  std::string library_path(const std::string& name) const override { return name; }

 private:
  std::string path_ = "memory";
  std::map<std::string, std::string> contents_;
};
