// shiftadd-rpc-server: lets `shiftadd-tvm tune --rpc` and `verify --rpc` use this machine; no Python here.
//
// One client at a time, each in a process of its own with a folder of its own, which go when it goes.
#include <dirent.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>

#include "session.h"
#include "tracker.h"
#include "wire.h"

namespace shiftadd::rpc {
namespace {

constexpr int32_t kMagic = 0xFF271, kMismatch = kMagic + 2;
constexpr int32_t kLongestKey = 512;
constexpr int kHandshake = 5;           // seconds in which a client must say its key
constexpr int kPoll = 2000;             // milliseconds between looks at the tracker
constexpr int kUnclaimed = 3;           // looks after which a key that was given away is replaced
constexpr int kRetry = 2;               // seconds

constexpr char kUsage[] =
    "usage: shiftadd-rpc-server --key KEY [--tracker HOST:PORT] [--bind HOST:PORT] [--announce HOST]\n"
    "\n"
    "  --key KEY            the name that clients ask for: letters, digits, . _ -\n"
    "  --tracker HOST:PORT  offer this machine to a tracker (python -m tvm.exec.rpc_tracker)\n"
    "  --bind HOST:PORT     where to listen (127.0.0.1:9090: only programs on this machine)\n"
    "  --announce HOST      the address that clients get from the tracker (default: as it sees us)\n"
    "\n"
    "TVM's RPC is for trusted networks: whoever reaches the port and knows the key runs code as this\n"
    "user, and nothing is encrypted.\n";

struct Options {
  std::string key, announce;
  Address bind = {"127.0.0.1", 9090}, tracker;
};

[[noreturn]] void usage(const std::string& problem) {
  std::fprintf(stderr, "shiftadd-rpc-server: %s\n%s", problem.c_str(), kUsage);
  std::exit(2);
}

bool is_key(const std::string& key) {
  constexpr char kAllowed[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
  return !key.empty() && key.size() <= 64 && key.find_first_not_of(kAllowed) == std::string::npos;
}

Options read_options(int count, char** words) {
  Options options;
  for (int i = 1; i < count; i += 2) {
    const std::string name = words[i];
    if (name == "--help" || name == "-h") {
      std::fputs(kUsage, stdout);
      std::exit(0);
    }
    if (i + 1 == count) usage(name + " has no value, or is unknown.");
    const std::string value = words[i + 1];
    if (name == "--key") options.key = value;
    else if (name == "--announce") options.announce = value;
    else if (name != "--bind" && name != "--tracker") usage(name + " is unknown.");
    else if (!parse_address(value, name == "--bind" ? options.bind : options.tracker))
      usage(name + " is " + value + ", expected HOST:PORT.");
  }
  if (!is_key(options.key)) usage("--key is '" + options.key + "', expected letters, digits, . _ -");
  if (options.announce.find_first_of("\"\\") != std::string::npos) usage("--announce is no host.");
  return options;
}

// Let a client in that says the expected key; its words after the key, or none for another client.
std::unique_ptr<std::string> admit(Socket& client, const std::string& expected, const std::string& key) {
  client.set_timeout(kHandshake);
  if (client.receive_number() != kMagic) return nullptr;
  const std::string said = client.receive_string(kLongestKey);
  const size_t end = said.find(' ');
  if (said.substr(0, end) != "client:" + expected) {
    client.send_number(kMismatch);
    std::fputs("shiftadd-rpc-server: refused a client with another key.\n", stderr);
    return nullptr;
  }
  client.send_number(kMagic);
  client.send_string("server:" + key);
  client.set_timeout(0);
  return std::make_unique<std::string>(end == std::string::npos ? "" : said.substr(end));
}

// The seconds that a client asks for, at most; 0: no limit.
unsigned time_limit(const std::string& words) {
  const size_t at = words.find("-timeout=");
  return at == std::string::npos ? 0 : static_cast<unsigned>(std::atof(words.c_str() + at + 9)) + 1;
}

// Remove a session's folder, in which are plain files only; one that stays costs room, no more.
void remove_folder(const std::string& folder) {
  if (DIR* listing = opendir(folder.c_str())) {
    while (const dirent* entry = readdir(listing)) unlink((folder + '/' + entry->d_name).c_str());
    closedir(listing);
  }
  rmdir(folder.c_str());
}

// Serve a client in a child process, in a folder of its own, and wait for its end.
void host(Socket& client, unsigned seconds) {
  const char* place = std::getenv("TMPDIR");
  std::string folder = std::string(place && *place ? place : "/tmp") + "/shiftadd-rpc-" + std::string(6, 'X');
  if (!mkdtemp(&folder[0])) throw WireError("a folder cannot be made: " + std::string(std::strerror(errno)));
  const pid_t child = fork();
  if (child == 0) {
    alarm(seconds);
    _exit(serve(client.descriptor(), folder));
  }
  client.close();
  int status = 0;
  if (child > 0) waitpid(child, &status, 0);
  if (child > 0 && WIFSIGNALED(status))
    std::fprintf(stderr, "shiftadd-rpc-server: a session ended by signal %d (%s).\n", WTERMSIG(status),
                 WTERMSIG(status) == SIGALRM ? "its time was over" : strsignal(WTERMSIG(status)));
  remove_folder(folder);
}

// Wait for a client; whether one came. `match` is renewed where the tracker gave it to nobody who came.
bool wait(const Socket& listening, Tracker* tracker, std::string& match) {
  for (int unclaimed = 0; !listening.readable(tracker ? kPoll : -1);) {
    unclaimed = tracker && tracker->is_pending(match) ? 0 : unclaimed + 1;
    if (unclaimed == kUnclaimed) return false;
  }
  return true;
}

void serve_forever(const Options& options, const Socket& listening) {
  std::unique_ptr<Tracker> tracker;
  std::string match = options.key;
  for (bool announced = false;;) {
    try {
      if (options.tracker.port && !tracker) {
        tracker = std::make_unique<Tracker>(options.tracker, options.key, options.announce, listening.port());
        announced = false;
      }
      if (tracker && !announced) match = tracker->announce();
      announced = true;
      if (!wait(listening, tracker.get(), match)) {
        announced = false;
        continue;
      }
    } catch (const WireError& error) {
      std::fprintf(stderr, "shiftadd-rpc-server: the tracker: %s; trying again.\n", error.what());
      tracker.reset();
      sleep(kRetry);
      continue;
    }
    try {
      Socket client = listening.accept();
      if (const auto words = admit(client, match, options.key)) {
        host(client, time_limit(*words));
        announced = false;  // a key opens one session
      }
    } catch (const WireError& error) {
      std::fprintf(stderr, "shiftadd-rpc-server: a client: %s.\n", error.what());
    }
  }
}

}  // namespace
}  // namespace shiftadd::rpc

int main(int count, char** words) {
  using namespace shiftadd::rpc;
  const Options options = read_options(count, words);
  try {
    const Socket listening = Socket::listen(options.bind);
    register_functions();
    std::printf("listening on %s:%d for %s; for trusted networks only: clients run code as this user\n",
                options.bind.host.c_str(), listening.port(), options.key.c_str());
    std::fflush(stdout);
    serve_forever(options, listening);
  } catch (const WireError& error) {
    std::fprintf(stderr, "shiftadd-rpc-server: %s\n", error.what());
    return 1;
  }
}
