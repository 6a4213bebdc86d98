// `mutations ARTIFACT COUNT SEED`: so many damaged copies of an artifact, each opened as a host opens it.
// Each must be refused with a status and a sentence, or load because the damage is where nobody looks at
// load; damaged weights must be caught when everything is hashed. Prints how many of each kind.
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <iterator>
#include <random>

#include "artifact.h"
#include "memory_files.h"
#include "processor.h"
#include "sha256.h"

using namespace shiftadd::internal;
namespace json = shiftadd::json;
using Contents = std::map<std::string, std::string>;

namespace {

std::mt19937_64 randomness;

size_t below(size_t limit) { return limit ? randomness() % limit : 0; }

std::string read(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), {}};
}

void replace(std::string& text, const std::string& old, const std::string& with) {
  const size_t at = text.find(old);
  if (at == text.npos) std::abort();
  text.replace(at, old.size(), with);
}

// The artifact with a small file as its library: nothing here runs it.
Contents original(const std::string& folder) {
  Contents contents;
  contents[kManifest] = read(folder + "/" + kManifest);
  const std::string manifest = contents[kManifest];
  const json::Document document(manifest);
  for (const json::Value file : document.root().at("files")) {
    const std::string name(file.key());
    contents[name] = read(folder + "/" + name);
  }
  const std::string library = contents[kLibrary], small = "no code";
  contents[kLibrary] = small;
  replace(contents[kManifest], std::to_string(library.size()), std::to_string(small.size()));
  replace(contents[kManifest], sha256(library.data(), library.size()), sha256(small.data(), small.size()));
  const std::string machine_name(machine());
  replace(contents[kManifest], "\"machine\": \"x86_64\"", "\"machine\": \"" + machine_name + "\"");
  const size_t features = contents[kManifest].find("\"features\""), end = contents[kManifest].find(']', features);
  contents[kManifest].replace(features, end + 1 - features, "\"features\": []");
  return contents;
}

void flip(std::string& bytes, size_t from, size_t to) {
  if (to > from) bytes[from + below(to - from)] ^= static_cast<char>(1 << below(8));
}

void collect(json::Value value, std::vector<std::string_view>& found) {
  found.push_back(value.source());
  if (!value.is(json::Kind::kObject) && !value.is(json::Kind::kArray)) return;
  for (const json::Value item : value) collect(item, found);
}

// Any value of a JSON text becomes a hostile one.
void replace_value(std::string& text, size_t from, size_t size) {
  static const std::vector<std::string> kHostile = {
      "-1", "0", "1", "3", "65537", "4294967296", "9223372036854775807", "-9223372036854775808",
      "99999999999999999999999", "1e308", "1.5", "true", "null", "\"\"", "\"..\"", "\"../../etc/passwd\"",
      "\"/etc/passwd\"", "\"a\\u0000b\"", "\"\\ud83d\\ude00\"", "\"float64\"", "\"uint8\"", "\"int32\"",
      "\"pages\"", "[]", "{}", "[1,2]", "[[[[[[[[]]]]]]]]", "{\"bytes\":1,\"sha256\":\"00\"}",
      "\"armv7\"", "[\"no_such_feature\"]", "2", std::string(200, '['), "\"" + std::string(5000, 'x') + "\"",
      "[9223372036854775807,9223372036854775807]"};
  std::vector<std::string_view> values;
  const std::string copy = text.substr(from, size);
  const json::Document document(copy);
  collect(document.root(), values);
  const std::string_view chosen = values[below(values.size())];
  text.replace(from + static_cast<size_t>(chosen.data() - copy.data()), chosen.size(), kHostile[below(kHostile.size())]);
}

// A key of a JSON text becomes another one: file names and tensor names are keys.
void replace_key(std::string& text, size_t from, size_t size) {
  static const std::vector<std::string> kNames = {"", ".", "..", "../model.so", "/etc/passwd", "a/b", "a\\\\b",
                                                  "model.so", "shape", "\\u0000", "manifest.json"};
  std::vector<size_t> colons;
  for (size_t at = from; at < from + size; ++at) {
    if (text[at] == ':' && text[at - 1] == '"') colons.push_back(at - 1);
  }
  if (colons.empty()) return;
  const size_t end = colons[below(colons.size())], begin = text.rfind('"', end - 1) + 1;
  text.replace(begin, end - begin, kNames[below(kNames.size())]);
}

size_t header_bytes(const std::string& file) {
  uint64_t size = 0;
  for (size_t i = 0; i < 8; ++i) size |= uint64_t{static_cast<unsigned char>(file[i])} << 8 * i;
  return static_cast<size_t>(size);
}

struct Kind {
  const char* name;
  std::function<void(Contents&)> damage;
  bool weights;  // nothing but weights: loads, and is caught by hashes
};

std::vector<Kind> kinds(const Contents& intact) {
  const size_t header = header_bytes(intact.at(kParameters)), data = 8 + header;
  const auto any_file = [](Contents& c) { return std::next(c.begin(), static_cast<long>(below(c.size()))); };
  return {
      {"bits of the manifest", [](Contents& c) { flip(c[kManifest], 0, c[kManifest].size()); }, false},
      {"values of the manifest", [](Contents& c) { replace_value(c[kManifest], 0, c[kManifest].size()); }, false},
      {"keys of the manifest", [](Contents& c) { replace_key(c[kManifest], 0, c[kManifest].size()); }, false},
      {"a part of the manifest", [](Contents& c) { c[kManifest].erase(below(c[kManifest].size()), 1 + below(99)); }, false},
      {"bits of the header", [=](Contents& c) { flip(c[kParameters], 0, data); }, false},
      {"values of the header", [=](Contents& c) { replace_value(c[kParameters], 8, header); }, false},
      {"keys of the header", [=](Contents& c) { replace_key(c[kParameters], 8, header); }, false},
      {"the header's length", [](Contents& c) {
         for (size_t i = 0; i < 8; ++i) c[kParameters][i] = static_cast<char>(below(2) ? randomness() : 0);
       }, false},
      {"a truncated file", [=](Contents& c) { auto f = any_file(c); f->second.resize(below(f->second.size())); }, false},
      {"a longer file", [=](Contents& c) { any_file(c)->second.append(1 + below(5000), 'x'); }, false},
      {"a missing file", [=](Contents& c) { c.erase(any_file(c)); }, false},
      {"bits of the weights", [=](Contents& c) { flip(c[kParameters], data, c[kParameters].size()); }, true},
      {"bits of any file", [=](Contents& c) { auto f = any_file(c); flip(f->second, 0, f->second.size()); }, false},
  };
}

// Whether it loads. Ends the program for anything but a status with a clean sentence.
bool loads(const Contents& contents, bool check_hashes) {
  try {
    const Artifact artifact(std::make_unique<MemoryFiles>(contents), check_hashes, SHIFTADD_LOAD_AS_COMPILED);
    return true;
  } catch (const Failure& failure) {
    const bool known = failure.status == SHIFTADD_ERROR_BAD_FILE || failure.status == SHIFTADD_ERROR_UNSUPPORTED;
    bool clean = !failure.sentence.empty() && failure.sentence.back() == '.';
    for (const char c : failure.sentence) clean = clean && static_cast<unsigned char>(c) >= 0x20;
    if (known && clean) return false;
    std::fprintf(stderr, "status %d: %s\n", failure.status, failure.sentence.c_str());
    std::exit(1);
  }
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 4) return 2;
  const Contents intact = original(arguments[1]);
  randomness.seed(std::strtoull(arguments[3], nullptr, 10));
  if (!loads(intact, true)) return std::fprintf(stderr, "the intact artifact does not load\n"), 1;
  const std::vector<Kind> all = kinds(intact);
  std::vector<size_t> refused(all.size()), loaded(all.size());
  for (long turn = 0; turn < std::strtol(arguments[2], nullptr, 10); ++turn) {
    const size_t which = static_cast<size_t>(turn) % all.size();
    Contents damaged = intact;
    all[which].damage(damaged);
    const bool fine = loads(damaged, false);
    ++(fine ? loaded : refused)[which];
    if (all[which].weights && (!fine || (damaged != intact && loads(damaged, true)))) {
      return std::fprintf(stderr, "%s: not as expected\n", all[which].name), 1;
    }
  }
  for (size_t i = 0; i < all.size(); ++i) std::printf("%s: %zu refused, %zu loaded\n", all[i].name, refused[i], loaded[i]);
  return 0;
}
