#include "safetensors.h"

#include <algorithm>

#include "failure.h"
#include "json.h"

namespace shiftadd::internal {
namespace {

constexpr uint64_t kMaxHeader = 32 << 20;
constexpr int64_t kMaxBytes = int64_t{1} << 62;
constexpr size_t kMaxDimensions = 32;

struct Reader {
  const Bytes& file;
  const std::string& path;

  [[noreturn]] void bad(const std::string& what) const {
    fail(SHIFTADD_ERROR_BAD_FILE, path + " is not a valid safetensors file: " + what + "; get it again.");
  }

  size_t header_bytes() const {
    uint64_t length = 0;
    for (size_t i = 0; i < 8 && file.size >= 8; ++i) length |= uint64_t{file.data[i]} << 8 * i;
    if (file.size < 8 || length > std::min<uint64_t>(kMaxHeader, file.size - 8)) {
      bad("its header claims " + std::to_string(length) + " bytes, the file has " + std::to_string(file.size));
    }
    return static_cast<size_t>(length);
  }

  static bool is_size(const Json& value) {
    return value.is(Json::Type::integer) && value.integer() >= 0 && value.integer() < kMaxBytes;
  }

  static bool are_sizes(const Json* value) {
    return value && value->is(Json::Type::array) &&
           std::all_of(value->items().begin(), value->items().end(), is_size);
  }

  static size_t element_bytes(const std::string& dtype) {
    static const std::unordered_map<std::string, size_t> kBytes = {
        {"BOOL", 1}, {"U8", 1}, {"I8", 1}, {"U16", 2}, {"I16", 2}, {"F16", 2}, {"BF16", 2},
        {"U32", 4}, {"I32", 4}, {"F32", 4}, {"U64", 8}, {"I64", 8}, {"F64", 8}};
    const auto found = kBytes.find(dtype);
    return found == kBytes.end() ? 0 : found->second;
  }

  // `size` bytes follow the header.
  StoredTensor tensor(const std::string& name, const Json& entry, const unsigned char* begin, size_t size) const {
    const Json *dtype = entry.find("dtype"), *shape = entry.find("shape"), *span = entry.find("data_offsets");
    const std::string shown = "tensor " + quoted(name);
    if (!dtype || !dtype->is(Json::Type::string) || element_bytes(dtype->string()) == 0) {
      bad(shown + " has dtype " + (dtype ? quoted(dtype->source()) : "missing"));
    }
    if (!are_sizes(shape) || !are_sizes(span) || span->items().size() != 2 || shape->items().size() > kMaxDimensions) {
      bad(shown + " has shape " + (shape ? quoted(shape->source()) : "missing") + " and offsets " +
          (span ? quoted(span->source()) : "missing"));
    }
    const int64_t from = span->items()[0].integer(), to = span->items()[1].integer();
    if (from > to || static_cast<uint64_t>(to) > size) {
      bad(shown + " lies at " + quoted(span->source()) + ", the data have " + std::to_string(size) + " bytes");
    }
    StoredTensor stored{dtype->string(), {}, begin + from, static_cast<size_t>(to - from)};
    uint64_t expected = element_bytes(stored.dtype);
    for (const Json& extent : shape->items()) {
      const uint64_t count = static_cast<uint64_t>(extent.integer());
      if (count > 0 && expected > static_cast<uint64_t>(kMaxBytes) / count) bad(shown + " is too large");
      expected *= count;
      stored.shape.push_back(extent.integer());
    }
    if (expected != stored.bytes) {
      bad(shown + " needs " + std::to_string(expected) + " bytes for its shape, has " + std::to_string(stored.bytes));
    }
    return stored;
  }
};

}  // namespace

std::unordered_map<std::string, StoredTensor> read_safetensors(const Bytes& file, const std::string& path) {
  const Reader reader{file, path};
  const size_t header = reader.header_bytes();
  Json root;
  try {
    root = Json::parse(file.text().substr(8, header));
  } catch (const JsonError& error) {
    reader.bad("its header is not JSON (" + error.reason + ")");
  }
  if (!root.is(Json::Type::object)) reader.bad("its header is not a JSON object");
  const unsigned char* begin = file.data + 8 + header;
  const size_t size = file.size - 8 - header;
  std::unordered_map<std::string, StoredTensor> tensors;
  std::vector<std::pair<const unsigned char*, size_t>> spans;
  for (size_t i = 0; i < root.items().size(); ++i) {
    const std::string& name = root.keys()[i];
    if (name == "__metadata__") continue;
    const auto [place, is_new] = tensors.emplace(name, reader.tensor(name, root.items()[i], begin, size));
    if (!is_new) reader.bad("tensor " + quoted(name) + " stands in it twice");
    spans.emplace_back(place->second.data, place->second.bytes);
  }
  std::sort(spans.begin(), spans.end());
  const unsigned char* end = begin;
  for (const auto& [data, bytes] : spans) {
    if (data != end) reader.bad("its tensors overlap or leave gaps");
    end = data + bytes;
  }
  if (end != begin + size) {
    reader.bad("its tensors need " + std::to_string(end - begin) + " bytes, the file holds " + std::to_string(size));
  }
  return tensors;
}

}  // namespace shiftadd::internal
