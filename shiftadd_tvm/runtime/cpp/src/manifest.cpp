#include "manifest.h"

#include <algorithm>

#include "failure.h"
#include "gpu.h"
#include "processor.h"

namespace shiftadd::internal {
namespace {

constexpr int64_t kSchema = 1;  // of the manifest
constexpr int64_t kAbi = 1;     // of the exported functions
constexpr size_t kMaxManifest = 16 << 20;
constexpr size_t kMaxValues = 500'000;  // a model of 80 layers has 20,000
constexpr size_t kMaxDimensions = 16;
constexpr int64_t kMaxSize = int64_t{1} << 40;  // of one axis
constexpr int32_t kMaxContext = 1 << 24;        // 16 million tokens: bounds the tables of pages
constexpr int32_t kMaxRows = 1 << 16;
constexpr int32_t kMaxVocabulary = 1 << 28;

std::string shown(json::Value value) {
  return value ? quoted(value.source()) : std::string("missing");
}

// The member of an object; nothing where there is none, or no object.
json::Value member(json::Value value, std::string_view key) {
  return value.is(json::Kind::kObject) ? value.find(key) : json::Value();
}

// The whole number that a value is, if it lies between two.
std::optional<int64_t> between(json::Value value, int64_t least, int64_t most) {
  const std::optional<int64_t> number = value.whole();
  return number && *number >= least && *number <= most ? number : std::nullopt;
}

bool is_plain_name(std::string_view name) {
  const auto strange = [](unsigned char c) { return c < 0x20 || c == '/' || c == '\\' || c == 0x7F; };
  return !name.empty() && name.size() <= 255 && name != "." && name != ".." &&
         std::none_of(name.begin(), name.end(), strange);
}

bool is_digest(std::string_view text) {
  const auto hex = [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); };
  return text.size() == 64 && std::all_of(text.begin(), text.end(), hex);
}

}  // namespace

int TensorSpec::axis(std::string_view symbol) const {
  const auto found = std::find(symbols.begin(), symbols.end(), symbol);
  return found == symbols.end() ? -1 : static_cast<int>(found - symbols.begin());
}

Manifest::Manifest(const Files& files) : path_(quoted(files.path())) {
  const Bytes bytes = files.map(kManifest);
  if (bytes.size > kMaxManifest) bad(std::string(kManifest) + " has " + std::to_string(bytes.size) + " bytes, expected at most " + std::to_string(kMaxManifest));
  text_ = bytes.text();
  try {
    document_.emplace(text_, kMaxValues);
    read();
  } catch (const json::Error& error) {
    bad(std::string(kManifest) + " cannot be read: " + error.what());
  }
}

void Manifest::read() {
  check_versions();
  read_files();
  for (const json::Value entry : section("parameters", json::Kind::kArray)) {
    parameters_.push_back(tensor(entry, "parameter", false));
  }
  read_functions();
  if (is_decoder()) {
    read_decoder();
  } else {
    read_limits();
  }
}

void Manifest::bad(const std::string& what) const {
  fail(SHIFTADD_ERROR_BAD_FILE, path_ + " is not a valid artifact: " + what + "; compile it again.");
}

void Manifest::check_versions() {
  const json::Value schema = member(document_->root(), "schema");
  if (!schema.whole()) bad(std::string(kManifest) + " states no schema version");
  if (schema.whole() != kSchema) {
    fail(SHIFTADD_ERROR_UNSUPPORTED,
         path_ + " has artifact schema " + shown(schema) + ", this version reads " + std::to_string(kSchema) +
             "; compile it again, or use the version of shiftadd-tvm that wrote it.");
  }
  const json::Value abi = document_->root().find("abi"), kind = document_->root().find("kind");
  if (kind.is(json::Kind::kString)) kind_ = kind.string();
  if (abi.whole() != kAbi || (kind_ != "decoder" && kind_ != "encoder" && kind_ != "function")) {
    bad("ABI " + shown(abi) + " and kind " + shown(kind));
  }
}

json::Value Manifest::section(const char* key, json::Kind kind) const {
  const json::Value value = document_->root().find(key);
  if (!value.is(kind)) bad(std::string(key) + " is not " + (kind == json::Kind::kArray ? "a list" : "an object"));
  return value;
}

int32_t Manifest::number(const char* name, const char* key, int32_t least, int32_t most) const {
  const json::Value value = section(name, json::Kind::kObject).find(key);
  const std::optional<int64_t> number = between(value, least, most);
  if (!number) {
    bad(std::string(name) + "." + key + " is " + shown(value) + ", expected a whole number from " +
        std::to_string(least) + " to " + std::to_string(most));
  }
  return static_cast<int32_t>(*number);
}

std::vector<int32_t> Manifest::numbers(const char* name, const char* key, int32_t least, int32_t most) const {
  const json::Value value = section(name, json::Kind::kObject).find(key);
  const auto refuse = [&] {
    bad(std::string(name) + "." + key + " is " + shown(value) + ", expected whole numbers from " +
        std::to_string(least) + " to " + std::to_string(most));
  };
  if (!value.is(json::Kind::kArray)) refuse();
  std::vector<int32_t> found;
  for (const json::Value entry : value) {
    const std::optional<int64_t> number = between(entry, least, most);
    if (!number) refuse();
    found.push_back(static_cast<int32_t>(*number));
  }
  return found;
}

void Manifest::read_files() {
  for (const json::Value record : section("files", json::Kind::kObject)) {
    const std::string name(record.key());
    const json::Value digest = member(record, "sha256");
    const std::optional<int64_t> bytes = between(member(record, "bytes"), 0, INT64_MAX);
    if (!is_plain_name(name)) bad("it lists a file " + quoted(name) + ", expected a plain name");
    if (!bytes || !digest.is(json::Kind::kString) || !is_digest(digest.string())) {
      bad(std::string(kManifest) + " does not state bytes and sha256 of " + quoted(name));
    }
    const FileRecord stated{static_cast<size_t>(*bytes), std::string(digest.string())};
    if (!files_.emplace(name, stated).second) bad("it lists the file " + quoted(name) + " twice");
  }
  for (const char* name : {kLibrary, kParameters}) {
    if (!files_.count(name)) bad(std::string(kManifest) + " does not list " + name);
  }
}

TensorSpec Manifest::tensor(json::Value entry, const std::string& where, bool may_vary) const {
  const json::Value name = member(entry, "name"), dtype = member(entry, "dtype"), shape = member(entry, "shape");
  if (!name.is(json::Kind::kString) || !dtype.is(json::Kind::kString) || !shape.is(json::Kind::kArray) ||
      shape.size() > kMaxDimensions) {
    bad(where + " " + shown(entry) + " states no name, dtype and shape");
  }
  TensorSpec spec{std::string(name.string()), element_type(dtype.string()), {}, {}};
  bool valid = spec.type != nullptr;
  int64_t total = 1;
  for (const json::Value size : shape) {
    const std::optional<int64_t> fixed = between(size, 0, kMaxSize - 1);
    const bool varies = may_vary && size.is(json::Kind::kString) && !size.string().empty();
    if (!fixed && !varies) valid = false;
    const int64_t extent = fixed.value_or(TensorSpec::kVaries);
    if (extent > 0 && total > kMaxSize / extent) valid = false;
    if (valid && extent > 0) total *= extent;
    spec.shape.push_back(extent);
    spec.symbols.emplace_back(varies ? size.string() : std::string_view());
  }
  if (!valid) bad(where + " " + quoted(spec.name) + " has dtype " + shown(dtype) + " and shape " + shown(shape));
  return spec;
}

std::vector<TensorSpec> Manifest::tensors(json::Value list, const std::string& where) const {
  if (!list.is(json::Kind::kArray)) bad(where + " has no list of tensors");
  std::vector<TensorSpec> found;
  for (const json::Value entry : list) found.push_back(tensor(entry, where, true));
  return found;
}

void Manifest::read_functions() {
  for (const json::Value entry : section("functions", json::Kind::kObject)) {
    const std::string name(entry.key()), where = "function " + quoted(name) + ":";
    const auto flag = [&](const char* of, json::Value value) {
      if (!value.is(json::Kind::kTrue) && !value.is(json::Kind::kFalse)) bad(where + " " + of + " is " + shown(value));
      return value.is(json::Kind::kTrue);
    };
    const json::Value captured = entry.find("captured");  // of functions for GPUs alone
    if (function(name)) bad("it lists the function " + quoted(name) + " twice");
    functions_.push_back(
        {name, tensors(member(entry, "inputs"), where), tensors(member(entry, "outputs"), where),
         flag("parameters", member(entry, "parameters")), captured && flag("captured", captured)});
  }
}

void Manifest::read_limits() {
  for (const json::Value entry : section("limits", json::Kind::kObject)) {
    const std::optional<int64_t> most = between(entry, 0, kMaxSize - 1);
    if (!most) bad("limits." + std::string(entry.key()) + " is " + shown(entry) + ", expected a whole number");
    limits_.emplace(entry.key(), *most);
  }
}

int64_t Manifest::limit(const std::string& symbol) const {
  const auto found = limits_.find(symbol);
  return found == limits_.end() ? INT64_MAX : found->second;
}

void Manifest::read_decoder() {
  decoder_.context = number("limits", "context", 1, kMaxContext);
  decoder_.page = number("limits", "page", 1, kMaxRows);
  decoder_.chunk = number("limits", "chunk", 1, kMaxRows);
  decoder_.logit_rows = number("limits", "logit_rows", 1, kMaxRows);
  decoder_.batches = numbers("limits", "batches", 1, kMaxRows);
  const bool measured = bool(section("limits", json::Kind::kObject).find("lookup_rows"));
  decoder_.lookup_rows = measured ? number("limits", "lookup_rows", 0, kMaxRows) : 1;
  decoder_.vocabulary = number("model", "vocabulary", 1, kMaxVocabulary);
  decoder_.eos = numbers("model", "eos", 0, INT32_MAX);
  const bool begins = bool(section("model", json::Kind::kObject).find("bos"));
  const std::vector<int32_t> bos = begins ? numbers("model", "bos", 0, INT32_MAX) : std::vector<int32_t>();
  decoder_.bos = bos.empty() ? -1 : bos[0];
  std::sort(decoder_.batches.begin(), decoder_.batches.end());
  check_decoder();
}

const TensorSpec& Manifest::one(const std::vector<TensorSpec>& tensors, const std::string& where) const {
  if (tensors.size() != 1) bad(where + " has " + std::to_string(tensors.size()) + " outputs, expected 1");
  return tensors[0];
}

// What is said twice must be said alike: kernels read beyond their tables where it is not.
void Manifest::check_decoder() const {
  std::vector<std::string> needed = {"embed", "logits", "prefill", "sample"};
  for (const int32_t batch : decoder_.batches) needed.push_back("decode_b" + std::to_string(batch));
  if (!std::count(decoder_.batches.begin(), decoder_.batches.end(), 1)) bad("limits.batches lacks 1");
  for (const std::string& name : needed) {
    const Signature* found = function(name);
    if (!found) bad("it has no function " + name);
    if (name == "embed" || name == "sample") continue;
    if (name != "logits") check_cache(*found);
    if (name == "prefill") continue;
    const TensorSpec& logits = one(found->outputs, name);
    if (logits.shape.size() != 2 || logits.shape[1] != decoder_.vocabulary || logits.type->dtype != SHIFTADD_FLOAT32) {
      bad("function " + name + " gives other logits than float32 of a vocabulary of " +
          std::to_string(decoder_.vocabulary));
    }
  }
}

void Manifest::check_cache(const Signature& function) const {
  int caches = 0;
  for (const TensorSpec& input : function.inputs) {
    const int pages = input.axis("pages");
    if (pages < 0) continue;
    ++caches;
    for (size_t i = 0; i < input.shape.size(); ++i) {
      if (static_cast<int>(i) != pages && input.shape[i] <= 0) bad("the cache " + quoted(input.name) + " has an unknown size");
    }
    const size_t from_end = input.name == "keys" ? 1 : input.name == "values" ? 2 : 0;
    if (from_end == 0) continue;
    if (input.shape.size() < from_end + pages + 1 || input.shape[input.shape.size() - from_end] != decoder_.page) {
      bad("the cache " + input.name + " of function " + function.name + " has other pages than " +
          std::to_string(decoder_.page) + " positions");
    }
  }
  if (caches == 0) bad("function " + function.name + " has no cache");
}

const Signature* Manifest::function(std::string_view name) const {
  const auto named = [&](const Signature& signature) { return signature.name == name; };
  const auto found = std::find_if(functions_.begin(), functions_.end(), named);
  return found == functions_.end() ? nullptr : &*found;
}

json::Value Manifest::at(std::string_view path) const {
  json::Value value = document_->root();
  while (value && !path.empty()) {
    const size_t dot = std::min(path.find('.'), path.size());
    const std::string_view key = path.substr(0, dot);
    try {
      value = member(value, key);
    } catch (const json::Error& error) {  // the key stands there twice
      bad(std::string(kManifest) + " cannot be read: " + error.what());
    }
    path.remove_prefix(std::min(dot + 1, path.size()));
  }
  return value;
}

bool Manifest::huge_pages() const {
  const json::Value load = document_->root().find("load");
  if (load.is(json::Kind::kString) && load.string() == "hugepages") return true;
  if (load && !(load.is(json::Kind::kString) && load.string() == "map")) bad("load is " + shown(load) + ", expected \"map\" or \"hugepages\"");
  return false;
}

std::string Manifest::device() const {
  const json::Value device = at("target.device");
  if (!device) return "";
  const std::string name(device.is(json::Kind::kString) ? device.string() : "");
  if (name.rfind("sm_", 0) != 0) bad("target.device is " + shown(device));
  return name;
}

void Manifest::check_machine() const {
  const json::Value needed = at("target.machine"), features = at("target.features");
  if (!needed.is(json::Kind::kString) || !features.is(json::Kind::kArray)) {
    bad("target states no machine and features");
  }
  if (needed.string() != machine()) {
    fail(SHIFTADD_ERROR_UNSUPPORTED,
         path_ + " is compiled for " + quoted(needed.string()) + " (" + shown(at("target.preset")) +
             "), this machine is " + std::string(machine()) + "; compile it with a --target that runs here.");
  }
  const std::string lacking = device().empty() ? "" : gpu_lacks(device());
  if (!lacking.empty()) {
    fail(SHIFTADD_ERROR_UNSUPPORTED, path_ + " is compiled for " + shown(at("target.preset")) + ", this machine lacks " +
                                         lacking + "; compile it with a --target that runs here.");
  }
  std::string missing;
  for (const json::Value feature : features) {
    if (!feature.is(json::Kind::kString)) bad("target.features is " + shown(features));
    if (has_feature(feature.string())) continue;
    missing.append(missing.empty() ? "" : ", ").append(feature.string());
  }
  if (!missing.empty()) {
    fail(SHIFTADD_ERROR_UNSUPPORTED, path_ + " needs the processor features " + quoted(missing) +
                                         ", which this machine lacks; compile it with a --target that runs here "
                                         "(shiftadd-tvm targets).");
  }
}

}  // namespace shiftadd::internal
