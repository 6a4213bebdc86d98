// Failures inside the library are thrown; at its border each becomes a status and a sentence.
#pragma once

#include <cstdint>
#include <exception>
#include <new>
#include <string>
#include <string_view>
#include <utility>

#include "shiftadd/shiftadd.h"

namespace shiftadd::internal {

// What a call of the C ABI returns, and what shiftadd_last_error() says then.
struct Failure {
  shiftadd_status status;
  std::string sentence;
};

[[noreturn]] inline void fail(shiftadd_status status, std::string sentence) {
  throw Failure{status, std::move(sentence)};
}

[[noreturn]] inline void misuse(std::string sentence) {
  fail(SHIFTADD_ERROR_USAGE, std::move(sentence));
}

// `text` of a file for a sentence: neither its length nor its control characters reach a terminal.
std::string quoted(std::string_view text);

// Keep the sentence of the calling thread's last failure; never allocates.
shiftadd_status remember(shiftadd_status status, std::string_view sentence) noexcept;

// Run the body of a function of the C ABI.
template <class Body>
shiftadd_status guarded(Body&& body) noexcept {
  try {
    body();
    return SHIFTADD_OK;
  } catch (const Failure& failure) {
    return remember(failure.status, failure.sentence);
  } catch (const std::bad_alloc&) {
    return remember(SHIFTADD_ERROR_NO_MEMORY, "Memory is used up; load a smaller model or fewer sequences.");
  } catch (const std::exception& error) {
    return remember(SHIFTADD_ERROR_INTERNAL, error.what());
  } catch (...) {
    return remember(SHIFTADD_ERROR_INTERNAL, "An unknown exception was thrown; please report it.");
  }
}

}  // namespace shiftadd::internal
