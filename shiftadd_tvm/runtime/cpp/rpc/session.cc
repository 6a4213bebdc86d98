#include "session.h"

#include <shiftadd/shiftadd.h>
#include <sys/utsname.h>
#include <tvm/ffi/c_api.h>
#include <unistd.h>

#include <climits>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <vector>

namespace shiftadd::rpc {
namespace {

std::string g_folder;  // of the one session that a process serves

TVMFFIByteArray bytes(const std::string& text) { return {text.data(), text.size()}; }

// What an RPC function is: it gets strings, and returns one ("" for none); it may throw.
using Body = std::string (*)(const std::vector<std::string>&);

std::string text_of(const TVMFFIAny& value) {
  if (value.type_index == kTVMFFIRawStr) return value.v_c_str;
  TVMFFIByteArray found;
  if (value.type_index == kTVMFFISmallStr) {
    found = TVMFFISmallBytesGetContentByteArray(&value);
  } else if (value.type_index == kTVMFFIStr) {
    found = *TVMFFIBytesGetByteArrayPtr(value.v_obj);
  } else {
    throw std::runtime_error("an argument is no text");
  }
  return std::string(found.data, found.size);
}

// The call by which TVM runs a Body; nothing is thrown across.
int run(void* body, const TVMFFIAny* arguments, int32_t count, TVMFFIAny* result) {
  try {
    std::vector<std::string> words;
    for (int32_t i = 0; i < count; ++i) words.push_back(text_of(arguments[i]));
    const std::string made = reinterpret_cast<Body>(body)(words);
    const TVMFFIByteArray view = bytes(made);
    return TVMFFIStringFromByteArray(&view, result);
  } catch (const std::exception& error) {
    TVMFFIErrorSetRaisedFromCStr("RuntimeError", error.what());
    return -1;
  }
}

// A name inside the session's folder: clients see no other files.
std::string inside(const std::vector<std::string>& words, size_t index) {
  const std::string name = words.size() > index ? words[index] : "";
  if (name.empty() || name[0] == '.' || name.find('/') != std::string::npos)
    throw std::runtime_error("'" + name + "' is no plain file name");
  return g_folder + '/' + name;
}

std::string work_path(const std::vector<std::string>& words) { return inside(words, 0); }

// Not a Body, since it returns a module.
int load_module(void*, const TVMFFIAny* arguments, int32_t count, TVMFFIAny* result) {
  try {
    const std::string path = inside({count ? text_of(arguments[0]) : ""}, 0);
    TVMFFIObjectHandle loader = nullptr;
    const TVMFFIByteArray name = {"ffi.ModuleLoadFromFile", sizeof("ffi.ModuleLoadFromFile") - 1};
    if (TVMFFIFunctionGetGlobal(&name, &loader) || !loader) throw std::runtime_error("no loader of modules");
    TVMFFIAny given = {};
    given.type_index = kTVMFFIRawStr;
    given.v_c_str = path.c_str();
    const int status = TVMFFIFunctionCall(loader, &given, 1, result);
    TVMFFIObjectDecRef(loader);
    return status;
  } catch (const std::exception& error) {
    TVMFFIErrorSetRaisedFromCStr("RuntimeError", error.what());
    return -1;
  }
}

std::string escaped(const std::string& text) {
  std::string made;
  for (const char c : text) {
    if (c == '"' || c == '\\') made += '\\';
    if (c == '\n') made += "\\n";
    else if (c == '\t') made += "\\t";
    else if (static_cast<unsigned char>(c) >= 32) made += c;
  }
  return made;
}

// Whether qemu's user mode runs this program: it shows its own path only where nobody asks often.
bool emulated() {
  char path[PATH_MAX];
  const ssize_t size = readlink("/proc/thread-self/exe", path, sizeof path - 1);
  const std::string program(path, size > 0 ? static_cast<size_t>(size) : 0);
  return program.substr(program.rfind('/') + 1).rfind("qemu", 0) == 0;
}

// An open file that is closed with the object. Not a stream: zig links its own C++ library into the program,
// and a board has to hold that.
struct Close {
  void operator()(std::FILE* file) const { std::fclose(file); }
};
using File = std::unique_ptr<std::FILE, Close>;

File open(const std::string& path, const char* mode) {
  File file(std::fopen(path.c_str(), mode));
  if (!file) throw std::runtime_error(path + " cannot be opened");
  return file;
}

std::string board(const std::vector<std::string>&) {
  utsname names = {};
  uname(&names);
  const File info = open("/proc/cpuinfo", "r");
  std::string text;
  char part[4096];
  for (size_t got; (got = std::fread(part, 1, sizeof part, info.get())) > 0;) text.append(part, got);
  return "{\"machine\": \"" + escaped(names.machine) + "\", \"name\": \"" + escaped(names.nodename) +
         "\", \"cores\": " + std::to_string(sysconf(_SC_NPROCESSORS_ONLN)) + ", \"emulated\": " +
         (emulated() ? "true" : "false") + ", \"cpuinfo\": \"" + escaped(text) + "\"}";
}

void check(shiftadd_status status) {
  if (status != SHIFTADD_OK) throw std::runtime_error(shiftadd_last_error());
}

int32_t append(const float* logits, size_t rows, size_t vocabulary, void* file) {
  return std::fwrite(logits, vocabulary * sizeof(float), rows, static_cast<std::FILE*>(file)) != rows;
}

// Handles of libshiftadd that are freed whatever happens.
struct Loaded {
  shiftadd_model* model = nullptr;
  shiftadd_session* session = nullptr;
  ~Loaded() {
    shiftadd_session_free(session);
    shiftadd_model_free(model);
  }
};

// Load the artifact that lies in the session's folder; write the logits of the token ids (int32) in one of
// its files to another (float32): by prefill, then again token by token. Returns the vocabulary's size.
std::string logits(const std::vector<std::string>& words) {
  const File given = open(inside(words, 0), "rb"), made = open(inside(words, 1), "wb");
  std::vector<int32_t> ids;
  for (int32_t id; std::fread(&id, sizeof id, 1, given.get()) == 1;) ids.push_back(id);
  shiftadd_model_params params = shiftadd_model_default_params();
  params.check_hashes = 1;
  Loaded loaded;
  check(shiftadd_model_load(g_folder.c_str(), &params, &loaded.model));
  check(shiftadd_session_create(loaded.model, &loaded.session));
  check(shiftadd_score(loaded.session, ids.data(), ids.size(), append, made.get()));
  check(shiftadd_session_reset(loaded.session));
  size_t vocabulary = 0;
  for (const int32_t id : ids) {
    const float* row = nullptr;
    check(shiftadd_decode(loaded.session, id));
    check(shiftadd_logits(loaded.session, &row, &vocabulary));
    append(row, 1, vocabulary, made.get());
  }
  if (std::fflush(made.get()) || std::ferror(made.get()))
    throw std::runtime_error("the logits cannot be written: is the disk full?");
  return std::to_string(vocabulary);
}

void publish(const std::string& name, void* self, TVMFFISafeCallType call) {
  TVMFFIObjectHandle function = nullptr;
  const TVMFFIByteArray view = bytes(name);
  if (TVMFFIFunctionCreate(self, call, nullptr, &function) || TVMFFIFunctionSetGlobal(&view, function, 1)) {
    std::fprintf(stderr, "shiftadd-rpc-server: TVM's runtime does not take %s.\n", name.c_str());
    std::exit(1);
  }
  TVMFFIObjectDecRef(function);
}

void publish(const std::string& name, Body body) { publish(name, reinterpret_cast<void*>(body), run); }

}  // namespace

void register_functions() {
  publish("tvm.rpc.server.workpath", work_path);
  publish("tvm.rpc.server.load_module", nullptr, load_module);
  publish("shiftadd.rpc.board", board);
  publish("shiftadd.rpc.logits", logits);
}

int serve(int descriptor, const std::string& folder) {
  g_folder = folder;
  TVMFFIObjectHandle loop = nullptr;
  const TVMFFIByteArray name = {"rpc.ServerLoop", sizeof("rpc.ServerLoop") - 1};
  if (TVMFFIFunctionGetGlobal(&name, &loop) || !loop) {
    std::fputs("shiftadd-rpc-server: TVM's runtime has no RPC in it.\n", stderr);
    return 1;
  }
  TVMFFIAny given = {}, result = {};
  given.type_index = kTVMFFIInt;
  given.v_int64 = descriptor;
  return TVMFFIFunctionCall(loop, &given, 1, &result) ? 1 : 0;
}

}  // namespace shiftadd::rpc
