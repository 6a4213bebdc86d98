#include "manifest.h"

#include <algorithm>

#include "failure.h"
#include "processor.h"

namespace shiftadd::internal {
namespace {

constexpr int64_t kSchema = 1;  // of the manifest
constexpr int64_t kAbi = 1;     // of the exported functions
constexpr size_t kMaxManifest = 16 << 20;
constexpr size_t kMaxDimensions = 16;
constexpr int64_t kMaxSize = int64_t{1} << 40;  // of one axis
constexpr int32_t kMaxContext = 1 << 24;        // 16 million tokens: bounds the tables of pages
constexpr int32_t kMaxRows = 1 << 16;
constexpr int32_t kMaxVocabulary = 1 << 28;

std::string shown(const Json* value) {
  return value ? quoted(value->source()) : std::string("missing");
}

bool is_plain_name(const std::string& name) {
  const auto strange = [](unsigned char c) { return c < 0x20 || c == '/' || c == '\\' || c == 0x7F; };
  return !name.empty() && name.size() <= 255 && name != "." && name != ".." &&
         std::none_of(name.begin(), name.end(), strange);
}

bool is_digest(const std::string& text) {
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
    root_ = Json::parse(text_);
  } catch (const JsonError& error) {
    bad(std::string(kManifest) + " cannot be read (" + error.reason + ")");
  }
  check_versions();
  read_files();
  const Json& listed = section("parameters", Json::Type::array);
  for (const Json& entry : listed.items()) parameters_.push_back(tensor(entry, "parameter", false));
  read_functions();
  if (is_decoder()) read_decoder();
}

void Manifest::bad(const std::string& what) const {
  fail(SHIFTADD_ERROR_BAD_FILE, path_ + " is not a valid artifact: " + what + "; compile it again.");
}

void Manifest::check_versions() {
  const Json* schema = root_.find("schema");
  if (!schema || !schema->is(Json::Type::integer)) bad(std::string(kManifest) + " states no schema version");
  if (schema->integer() != kSchema) {
    fail(SHIFTADD_ERROR_UNSUPPORTED,
         path_ + " has artifact schema " + shown(schema) + ", this version reads " + std::to_string(kSchema) +
             "; compile it again, or use the version of shiftadd-tvm that wrote it.");
  }
  const Json *abi = root_.find("abi"), *kind = root_.find("kind");
  const bool known = kind && kind->is(Json::Type::string) &&
                     (kind->string() == "decoder" || kind->string() == "encoder" || kind->string() == "function");
  if (!abi || !abi->is(Json::Type::integer) || abi->integer() != kAbi || !known) {
    bad("ABI " + shown(abi) + " and kind " + shown(kind));
  }
  kind_ = kind->string();
}

const Json& Manifest::section(const char* key, Json::Type type) const {
  const Json* value = root_.find(key);
  if (!value || !value->is(type)) bad(std::string(key) + " is not " + (type == Json::Type::array ? "a list" : "an object"));
  return *value;
}

int32_t Manifest::number(const char* name, const char* key, int32_t least, int32_t most) const {
  const Json* value = section(name, Json::Type::object).find(key);
  if (!value || !value->is(Json::Type::integer) || value->integer() < least || value->integer() > most) {
    bad(std::string(name) + "." + key + " is " + shown(value) + ", expected a whole number from " +
        std::to_string(least) + " to " + std::to_string(most));
  }
  return static_cast<int32_t>(value->integer());
}

std::vector<int32_t> Manifest::numbers(const char* name, const char* key, int32_t least, int32_t most) const {
  const Json* value = section(name, Json::Type::object).find(key);
  const auto valid = [&](const Json& entry) {
    return entry.is(Json::Type::integer) && entry.integer() >= least && entry.integer() <= most;
  };
  if (!value || !value->is(Json::Type::array) || !std::all_of(value->items().begin(), value->items().end(), valid)) {
    bad(std::string(name) + "." + key + " is " + shown(value) + ", expected whole numbers from " +
        std::to_string(least) + " to " + std::to_string(most));
  }
  std::vector<int32_t> found;
  for (const Json& entry : value->items()) found.push_back(static_cast<int32_t>(entry.integer()));
  return found;
}

void Manifest::read_files() {
  const Json& listed = section("files", Json::Type::object);
  for (size_t i = 0; i < listed.items().size(); ++i) {
    const std::string& name = listed.keys()[i];
    const Json *bytes = listed.items()[i].find("bytes"), *digest = listed.items()[i].find("sha256");
    if (!is_plain_name(name)) bad("it lists a file " + quoted(name) + ", expected a plain name");
    if (!bytes || !bytes->is(Json::Type::integer) || bytes->integer() < 0 || !digest ||
        !digest->is(Json::Type::string) || !is_digest(digest->string())) {
      bad(std::string(kManifest) + " does not state bytes and sha256 of " + quoted(name));
    }
    files_[name] = {static_cast<size_t>(bytes->integer()), digest->string()};
  }
  for (const char* name : {kLibrary, kParameters}) {
    if (!files_.count(name)) bad(std::string(kManifest) + " does not list " + name);
  }
}

TensorSpec Manifest::tensor(const Json& entry, const std::string& where, bool may_vary) const {
  const Json *name = entry.find("name"), *dtype = entry.find("dtype"), *shape = entry.find("shape");
  if (!name || !name->is(Json::Type::string) || !dtype || !dtype->is(Json::Type::string) || !shape ||
      !shape->is(Json::Type::array) || shape->items().size() > kMaxDimensions) {
    bad(where + " " + shown(&entry) + " states no name, dtype and shape");
  }
  TensorSpec spec{name->string(), element_type(dtype->string()), {}, {}};
  bool valid = spec.type != nullptr;
  int64_t total = 1;
  for (const Json& size : shape->items()) {
    const bool fixed = size.is(Json::Type::integer) && size.integer() >= 0 && size.integer() < kMaxSize;
    const bool varies = may_vary && size.is(Json::Type::string) && !size.string().empty();
    if (!fixed && !varies) valid = false;
    const int64_t extent = fixed ? size.integer() : TensorSpec::kVaries;
    if (fixed && extent > 0 && total > kMaxSize / extent) valid = false;
    if (valid && fixed && extent > 0) total *= extent;
    spec.shape.push_back(extent);
    spec.symbols.push_back(varies ? size.string() : std::string());
  }
  if (!valid) bad(where + " " + quoted(spec.name) + " has dtype " + shown(dtype) + " and shape " + shown(shape));
  return spec;
}

std::vector<TensorSpec> Manifest::tensors(const Json* list, const std::string& where) const {
  if (!list || !list->is(Json::Type::array)) bad(where + " has no list of tensors");
  std::vector<TensorSpec> found;
  for (const Json& entry : list->items()) found.push_back(tensor(entry, where, true));
  return found;
}

void Manifest::read_functions() {
  const Json& listed = section("functions", Json::Type::object);
  for (size_t i = 0; i < listed.items().size(); ++i) {
    const Json& entry = listed.items()[i];
    const std::string where = "function " + quoted(listed.keys()[i]) + ":";
    const Json* parameters = entry.find("parameters");
    if (!parameters || !parameters->is(Json::Type::boolean)) bad(where + " parameters is " + shown(parameters));
    functions_.push_back({listed.keys()[i], tensors(entry.find("inputs"), where),
                          tensors(entry.find("outputs"), where), parameters->boolean()});
  }
}

void Manifest::read_decoder() {
  decoder_.context = number("limits", "context", 1, kMaxContext);
  decoder_.page = number("limits", "page", 1, kMaxRows);
  decoder_.chunk = number("limits", "chunk", 1, kMaxRows);
  decoder_.logit_rows = number("limits", "logit_rows", 1, kMaxRows);
  decoder_.batches = numbers("limits", "batches", 1, kMaxRows);
  const bool measured = section("limits", Json::Type::object).find("lookup_rows") != nullptr;
  decoder_.lookup_rows = measured ? number("limits", "lookup_rows", 0, kMaxRows) : 1;
  decoder_.vocabulary = number("model", "vocabulary", 1, kMaxVocabulary);
  decoder_.eos = numbers("model", "eos", 0, INT32_MAX);
  const bool begins = section("model", Json::Type::object).find("bos") != nullptr;
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

const Json* Manifest::at(std::string_view path) const {
  const Json* value = &root_;
  while (value && !path.empty()) {
    const size_t dot = std::min(path.find('.'), path.size());
    value = value->find(path.substr(0, dot));
    path.remove_prefix(std::min(dot + 1, path.size()));
  }
  return value;
}

void Manifest::check_machine() const {
  const Json& target = section("target", Json::Type::object);
  const Json *needed_machine = target.find("machine"), *features = target.find("features");
  if (!needed_machine || !needed_machine->is(Json::Type::string) || !features || !features->is(Json::Type::array)) {
    bad("target states no machine and features");
  }
  if (needed_machine->string() != machine()) {
    fail(SHIFTADD_ERROR_UNSUPPORTED,
         path_ + " is compiled for " + quoted(needed_machine->string()) + " (" + shown(target.find("preset")) +
             "), this machine is " + std::string(machine()) + "; compile it with a --target that runs here.");
  }
  if (target.find("device")) {
    fail(SHIFTADD_ERROR_UNSUPPORTED,
         path_ + " is compiled for a GPU (" + shown(target.find("preset")) +
             "), which this version of libshiftadd cannot run; compile it with a --target for a processor.");
  }
  std::string missing;
  for (const Json& feature : features->items()) {
    if (!feature.is(Json::Type::string)) bad("target.features is " + shown(features));
    if (!has_feature(feature.string())) missing += (missing.empty() ? "" : ", ") + feature.string();
  }
  if (!missing.empty()) {
    fail(SHIFTADD_ERROR_UNSUPPORTED, path_ + " needs the processor features " + quoted(missing) +
                                         ", which this machine lacks; compile it with a --target that runs here "
                                         "(shiftadd-tvm targets).");
  }
}

}  // namespace shiftadd::internal
