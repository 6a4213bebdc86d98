// failure.h: how the text part says no inside; each becomes a status and a sentence at the border.
#ifndef SHIFTADD_TEXT_FAILURE_H_
#define SHIFTADD_TEXT_FAILURE_H_

#include <string>
#include <string_view>

#include "../src/failure.h"

namespace shiftadd::text {

using internal::Failure;

// A part of a file, for a sentence.
inline std::string quoted(std::string_view text) { return '"' + internal::quoted(text) + '"'; }

// What a file has that is not known, or is wrong: clauses, which the border completes.
[[noreturn]] inline void unsupported(const std::string& what) {
  internal::fail(SHIFTADD_ERROR_UNSUPPORTED, what);
}
[[noreturn]] inline void bad_file(const std::string& what) {
  internal::fail(SHIFTADD_ERROR_BAD_FILE, what);
}

// A wrong argument; a whole sentence.
[[noreturn]] inline void usage(const std::string& sentence) { internal::misuse(sentence + "."); }

}  // namespace shiftadd::text

#endif  // SHIFTADD_TEXT_FAILURE_H_
