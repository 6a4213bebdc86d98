// manifest.json: what a host must know before it opens model.so. Validated whole (docs/artifact.md).
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "files.h"
#include "json.h"
#include "tensor_types.h"

namespace shiftadd::internal {

inline constexpr char kManifest[] = "manifest.json";
inline constexpr char kLibrary[] = "model.so";
inline constexpr char kParameters[] = "parameters.safetensors";
inline constexpr char kGolden[] = "golden.safetensors";

// A named tensor. A size that varies is kVaries, and has a name.
struct TensorSpec {
  static constexpr int64_t kVaries = -1;

  std::string name;
  const ElementType* type;
  std::vector<int64_t> shape;
  std::vector<std::string> symbols;  // of each size; "" where it is fixed

  // The axis whose size is named so, or -1.
  int axis(std::string_view symbol) const;
};

struct Signature {
  std::string name;
  std::vector<TensorSpec> inputs, outputs;
  bool parameters;  // whether the parameters come last
  bool captured;    // whether a key comes before them: of the graph that a GPU captured
};

struct FileRecord {
  size_t bytes;
  std::string sha256;
};

// What a decoder's manifest says of it.
struct Decoder {
  int32_t context, page, chunk, logit_rows, vocabulary;
  int32_t lookup_rows;  // prompts up to this length go through a decode step
  int32_t bos;          // -1: none
  std::vector<int32_t> eos, batches;
};

class Manifest {
 public:
  // Read and check the manifest of `files`. Failure bad file or unsupported.
  explicit Manifest(const Files& files);

  const std::string& path() const { return path_; }
  std::string_view text() const { return text_; }
  const std::string& kind() const { return kind_; }
  bool is_decoder() const { return kind_ == "decoder"; }
  const Decoder& decoder() const { return decoder_; }
  const std::vector<TensorSpec>& parameters() const { return parameters_; }
  const std::vector<Signature>& functions() const { return functions_; }
  const std::map<std::string, FileRecord>& files() const { return files_; }

  // The architecture of the GPU that computes, such as "sm_90"; "": the processor does.
  std::string device() const;

  // Whether hosts are to hold the parameters in a copy on huge pages.
  bool huge_pages() const;

  // The most that a size of that name may be in a function's inputs.
  int64_t limit(const std::string& symbol) const;

  // The function of that name, or nullptr.
  const Signature* function(std::string_view name) const;

  // The value at a dotted path such as "model.type", or nothing.
  json::Value at(std::string_view path) const;

  // Failure unsupported where this machine lacks what the kernels need.
  void check_machine() const;

  // Failure bad file: the artifact is not valid because `what`.
  [[noreturn]] void bad(const std::string& what) const;

 private:
  void read();
  void check_versions();
  void read_files();
  void read_functions();
  void read_decoder();
  void read_limits();
  void check_decoder() const;
  void check_cache(const Signature& function) const;
  json::Value section(const char* key, json::Kind kind) const;
  int32_t number(const char* section, const char* key, int32_t least, int32_t most) const;
  std::vector<int32_t> numbers(const char* section, const char* key, int32_t least, int32_t most) const;
  TensorSpec tensor(json::Value entry, const std::string& where, bool may_vary) const;
  std::vector<TensorSpec> tensors(json::Value list, const std::string& where) const;
  const TensorSpec& one(const std::vector<TensorSpec>& tensors, const std::string& where) const;

  std::string path_;
  std::string text_;  // a copy: it ends with a 0
  std::optional<json::Document> document_;
  std::string kind_;
  Decoder decoder_ = {};
  std::vector<TensorSpec> parameters_;
  std::vector<Signature> functions_;
  std::map<std::string, FileRecord> files_;
  std::map<std::string, int64_t> limits_;
};

}  // namespace shiftadd::internal
