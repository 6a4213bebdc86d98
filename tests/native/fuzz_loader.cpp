// libFuzzer: the input as an archive, and, split at its first 0, as a manifest and a file of parameters.
#include <cstdlib>

#include "archive.h"
#include "artifact.h"
#include "memory_files.h"
#include "safetensors.h"

using namespace shiftadd::internal;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string input(reinterpret_cast<const char*>(data), size);
  const size_t split = std::min(input.find('\0'), size);
  const std::string manifest = input.substr(0, split), parameters = input.substr(std::min(split + 1, size));
  MemoryFiles files({{kManifest, manifest}, {kParameters, parameters}, {kLibrary, "no code"}});
  try {
    const auto archive = open_archive("memory", MemoryFiles({{"all", input}}).map("all"));
    archive->map(kManifest);
  } catch (const Failure& failure) {
    if (failure.sentence.empty()) std::abort();
  }
  try {
    const Manifest read(files);
    read.at("model.vocabulary");
    read.check_machine();
  } catch (const Failure& failure) {
    if (failure.sentence.empty()) std::abort();
  }
  try {
    read_safetensors(files.map(kParameters), "memory");
  } catch (const Failure& failure) {
    if (failure.sentence.empty()) std::abort();
  }
  return 0;
}
