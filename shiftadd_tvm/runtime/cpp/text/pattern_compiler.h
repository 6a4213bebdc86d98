// pattern_compiler.h: a pattern's text becomes the instructions of pattern.h.
#ifndef SHIFTADD_TEXT_PATTERN_COMPILER_H_
#define SHIFTADD_TEXT_PATTERN_COMPILER_H_

#include <string_view>
#include <vector>

#include "pattern.h"

namespace shiftadd::text {

struct CompiledPattern {
  std::vector<CodeSet> sets;
  std::vector<Instruction> code;
};

// A Failure says what is not understood, as a clause.
CompiledPattern compile_pattern(std::u32string_view source);

}  // namespace shiftadd::text

#endif  // SHIFTADD_TEXT_PATTERN_COMPILER_H_
