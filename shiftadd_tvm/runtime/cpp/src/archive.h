// An artifact in one file: a tar archive of its folder, uncompressed, used where it lies.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "files.h"

namespace shiftadd::internal {

// The files of a tar archive (ustar, GNU or pax headers) that is mapped at `whole`. Failure bad file.
std::unique_ptr<Files> open_archive(const std::string& path, Bytes whole);

}  // namespace shiftadd::internal
