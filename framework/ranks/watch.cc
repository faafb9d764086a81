// SPDX-License-Identifier: MIT
#include "framework/ranks/watch.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <random>
#include <sstream>
#include <thread>
#include <utility>

#include "framework/error.h"
#include "framework/program.h"

namespace fmp {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr seconds kBeat{1};
// Whoever was stopped itself for so long cannot tell who is silent.
constexpr seconds kOwnPause{2};
constexpr seconds kJoinTime{20};
// How long rank 0 waits for an error of its own before it tells that of another rank: often all
// ranks have the same.
constexpr milliseconds kOwnErrorFirst{1000};
// For the others to end, or to be told to.
constexpr seconds kEndTime{3};
// For the launcher to find that another host is gone, and to end the job: once a process has ended
// it waits for its daemon there, which does not answer, for a quarter of an hour.
constexpr seconds kLauncherTime{8};
constexpr size_t kMaxMessage = 4096;

// What is sent: a byte that says what it is; kJoin: and the token and the rank, 8 bytes each;
// kError: and the exit code, the length (2 bytes) and the text; kExit: and the exit code.
constexpr char kAlive = '.', kJoin = 'J', kWelcome = 'W', kBye = 'B', kError = 'E', kExit = 'X';

class Socket {
 public:
  explicit Socket(int descriptor = -1) : descriptor_(descriptor) {}
  Socket(Socket&& other) noexcept : descriptor_(std::exchange(other.descriptor_, -1)) {}
  Socket& operator=(Socket&& other) noexcept {
    std::swap(descriptor_, other.descriptor_);
    return *this;
  }
  ~Socket() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }
  int get() const { return descriptor_; }
  explicit operator bool() const { return descriptor_ >= 0; }

 private:
  int descriptor_;
};

// Sends all of it or, if the other end takes no more, nothing or a part: a connection like that is
// found to be silent.
void send_some(const Socket& socket, std::string_view bytes) {
  if (socket) (void)::send(socket.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
}

template <typename T>
std::string raw(T value) {
  return {reinterpret_cast<const char*>(&value), sizeof value};
}
template <typename T>
T value_at(const std::string& bytes, size_t at) {
  T value;
  std::memcpy(&value, bytes.data() + at, sizeof value);
  return value;
}

// The IPv4 and IPv6 addresses of this machine.
std::vector<std::string> own_addresses() {
  std::vector<std::string> found;
  ifaddrs* list = nullptr;
  if (::getifaddrs(&list) != 0) return found;
  for (const ifaddrs* entry = list; entry != nullptr; entry = entry->ifa_next) {
    if (entry->ifa_addr == nullptr) continue;
    std::array<char, INET6_ADDRSTRLEN> text{};
    const int family = entry->ifa_addr->sa_family;
    if (family == AF_INET) {
      const auto* address = reinterpret_cast<const sockaddr_in*>(entry->ifa_addr);
      ::inet_ntop(family, &address->sin_addr, text.data(), text.size());
    } else if (family == AF_INET6) {
      const auto* address = reinterpret_cast<const sockaddr_in6*>(entry->ifa_addr);
      if (IN6_IS_ADDR_LINKLOCAL(&address->sin6_addr)) continue;  // they need a scope
      ::inet_ntop(family, &address->sin6_addr, text.data(), text.size());
    } else {
      continue;
    }
    found.emplace_back(text.data());
  }
  ::freeifaddrs(list);
  return found;
}

// Waits until the socket can be read or written, or the time is over.
bool wait_for(const Socket& socket, int16_t events, milliseconds time) {
  pollfd entry{socket.get(), events, 0};
  return ::poll(&entry, 1, static_cast<int>(time.count())) == 1;
}

// Connects within 2 s and exchanges the token; an empty socket if that does not work.
Socket try_to_join(const std::string& address, uint16_t port, uint64_t token, int64_t rank) {
  constexpr milliseconds kTime{2000};
  sockaddr_in6 six{};
  sockaddr_in four{};
  const bool is_six = ::inet_pton(AF_INET6, address.c_str(), &six.sin6_addr) == 1;
  if (!is_six && ::inet_pton(AF_INET, address.c_str(), &four.sin_addr) != 1) return Socket();
  six.sin6_family = AF_INET6;
  four.sin_family = AF_INET;
  six.sin6_port = four.sin_port = htons(port);
  Socket socket(
      ::socket(is_six ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket) return socket;
  const auto* target =
      is_six ? reinterpret_cast<const sockaddr*>(&six) : reinterpret_cast<const sockaddr*>(&four);
  if (::connect(socket.get(), target, is_six ? sizeof six : sizeof four) != 0 &&
      (errno != EINPROGRESS || !wait_for(socket, POLLOUT, kTime)))
    return Socket();
  send_some(socket, kJoin + raw(token) + raw(rank));
  char answer = 0;
  if (!wait_for(socket, POLLIN, kTime) || ::recv(socket.get(), &answer, 1, 0) != 1 ||
      answer != kWelcome)
    return Socket();
  return socket;
}

std::string error_message(int exit_code, std::string text) {
  text.resize(std::min(text.size(), kMaxMessage));
  return kError + raw(static_cast<uint8_t>(exit_code)) + raw(static_cast<uint16_t>(text.size())) +
         text;
}

}  // namespace

seconds Watch::silence() {
  static const seconds time = [] {
    constexpr int kUsual = 15, kLeast = 2;
    const char* given = std::getenv("FMP_RANK_SILENCE");  // NOLINT(concurrency-mt-unsafe)
    return seconds(given != nullptr ? std::max(kLeast, std::atoi(given)) : kUsual);  // NOLINT
  }();
  return time;
}

struct Watch::State {
  int rank = 0;
  std::vector<std::string> names;
  bool speaks = true;
  uint64_t token = 0;
  Socket listening;  // of rank 0
  uint16_t port = 0;

  struct Peer {
    Socket socket;
    int rank = -1;  // -1: has not said it yet
    std::string received;
    bool left = false;
    Clock::time_point heard = Clock::now();
  };
  std::vector<Peer> peers;  // rank 0: all others, else rank 0 alone

  std::mutex mutex;  // of the following
  std::condition_variable changed;
  bool leaving = false, ending = false;
  int end_code = 0;
  std::string end_message;
  std::atomic<bool> stop = false;
  int joined = 0;

  std::thread thread;

  void run();
  void listen();
  void accept_one();
  void read(Peer& peer);
  bool understand(Peer& peer);
  enum class Lost : bool { kClosed, kSilent };
  void lost(const Peer& peer, Lost why, const std::string& how);
  bool is_elsewhere(const Peer& peer) const;
  [[noreturn]] void end_all(int code, const std::string& line, seconds launcher_time = {});
  void handle_own_end();
  const std::string& name(const Peer& peer) const {
    return names[static_cast<size_t>(std::max(peer.rank, 0))];
  }
  void check_remote_error();

  // The first error that another rank told.
  bool remote_error = false;
  int remote_code = 0;
  std::string remote_line;
  Clock::time_point remote_time;
};

void Watch::State::listen() {
  listening = Socket(::socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  const int off = 0;
  sockaddr_in6 six{};
  six.sin6_family = AF_INET6;
  sockaddr_in four{};
  four.sin_family = AF_INET;
  bool bound = listening &&
               ::setsockopt(listening.get(), IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off) == 0 &&
               ::bind(listening.get(), reinterpret_cast<sockaddr*>(&six), sizeof six) == 0;
  if (!bound) {  // there is no IPv6
    listening = Socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    bound =
        listening && ::bind(listening.get(), reinterpret_cast<sockaddr*>(&four), sizeof four) == 0;
  }
  sockaddr_storage own{};
  socklen_t size = sizeof own;
  if (!bound || ::listen(listening.get(), SOMAXCONN) != 0 ||
      ::getsockname(listening.get(), reinterpret_cast<sockaddr*>(&own), &size) != 0)
    fail("cannot listen to the other ranks: {}", errno_message(errno));
  port = ntohs(own.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6*>(&own)->sin6_port
                                         : reinterpret_cast<sockaddr_in*>(&own)->sin_port);
}

void Watch::State::accept_one() {
  Socket socket(::accept4(listening.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!socket) return;
  const int on = 1;
  ::setsockopt(socket.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  peers.emplace_back().socket = std::move(socket);
}

// One line, and the end of all ranks. Only this thread tells errors, and only once.
void Watch::State::end_all(int code, const std::string& line, seconds launcher_time) {
  if (!line.empty()) write_to_stderr("error: " + one_line(line) + "\n");
  std::this_thread::sleep_for(launcher_time);
  for (const Peer& peer : peers) send_some(peer.socket, kExit + raw(static_cast<uint8_t>(code)));
  // They close their connections by ending. One that hangs does not: the launcher ends it.
  const Clock::time_point until = Clock::now() + kEndTime;
  for (const Peer& peer : peers) {
    std::array<char, 256> ignored{};
    while (peer.socket && Clock::now() < until &&
           wait_for(peer.socket, POLLIN, milliseconds(100))) {
      if (::recv(peer.socket.get(), ignored.data(), ignored.size(), 0) <= 0) break;
    }
  }
  ::_exit(code);
}

// Whether it is on another host than this rank: names are "rank 3 on node17".
bool Watch::State::is_elsewhere(const Peer& peer) const {
  const auto host = [](const std::string& name) { return name.substr(name.rfind(' ') + 1); };
  return host(name(peer)) != host(names[static_cast<size_t>(rank)]);
}

void Watch::State::lost(const Peer& peer, Lost why, const std::string& how) {
  if (peer.rank < 0) return;  // a stranger
  if (rank == 0) {
    if (remote_error) return;  // it ended because of what it told
    const bool launcher_may_know = why == Lost::kSilent && is_elsewhere(peer);
    end_all(kExitFailure, fmt::format("lost {}: {}", name(peer), how),
            launcher_may_know ? kLauncherTime : seconds{0});
  }
  if (!speaks) ::_exit(kExitFailure);
  end_all(kExitFailure, fmt::format("lost {}: {}", names[0], how));
}

void Watch::State::read(Peer& peer) {
  std::array<char, 512> bytes{};
  const ssize_t got = ::recv(peer.socket.get(), bytes.data(), bytes.size(), MSG_DONTWAIT);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (got <= 0) {
    peer.socket = Socket();
    if (!peer.left) lost(peer, Lost::kClosed, "it was killed, or crashed");
    return;
  }
  peer.heard = Clock::now();
  peer.received.append(bytes.data(), static_cast<size_t>(got));
  while (!peer.received.empty() && understand(peer)) {
  }
}

// Takes the first message; false: it is not complete.
bool Watch::State::understand(Peer& peer) {
  std::string& bytes = peer.received;
  const auto take = [&](size_t size) { bytes.erase(0, size); };
  if (peer.rank < 0) {
    if (bytes.size() < 17) return false;
    const auto theirs = value_at<uint64_t>(bytes, 1);
    const auto number = value_at<int64_t>(bytes, 9);
    if (bytes[0] != kJoin || theirs != token || number < 1 || number >= std::ssize(names)) {
      peer.socket = Socket();
      bytes.clear();
      return false;
    }
    peer.rank = static_cast<int>(number);
    send_some(peer.socket, std::string(1, kWelcome));
    take(17);
    return true;
  }
  switch (bytes[0]) {
    case kBye:
      peer.left = true;
      take(1);
      return true;
    case kExit:
      if (bytes.size() < 2) return false;
      if (rank != 0) ::_exit(static_cast<uint8_t>(bytes[1]));
      take(2);
      return true;
    case kError: {
      if (bytes.size() < 4) return false;
      const auto length = value_at<uint16_t>(bytes, 2);
      if (bytes.size() < 4U + length) return false;
      if (!remote_error) {
        remote_error = true;
        remote_code = static_cast<uint8_t>(bytes[1]);
        remote_line = fmt::format("{}: {}", name(peer), bytes.substr(4, length));
        remote_time = Clock::now();
      }
      peer.left = true;
      take(4U + length);
      return true;
    }
    default:
      take(1);
      return true;
  }
}

void Watch::State::check_remote_error() {
  if (remote_error && Clock::now() - remote_time > kOwnErrorFirst)
    end_all(remote_code, remote_line);
}

// This rank has an error.
void Watch::State::handle_own_end() {
  std::string message;
  int code = 0;
  {
    const std::lock_guard lock(mutex);
    if (!ending) return;
    message = end_message;
    code = end_code;
  }
  if (rank == 0) end_all(code, message);
  // Rank 0 tells it, or another error, and then ends this process.
  for (Peer& peer : peers) {
    send_some(peer.socket, error_message(code, message));
    const Clock::time_point until = Clock::now() + kEndTime;
    while (peer.socket && Clock::now() < until) {
      if (wait_for(peer.socket, POLLIN, milliseconds(100))) {
        peer.left = true;  // whatever happens
        read(peer);
      }
    }
  }
  ::_exit(code);
}

void Watch::State::run() {
  constexpr milliseconds kLook{200};
  Clock::time_point looked = Clock::now(), beat = looked;
  while (!stop) {
    std::vector<pollfd> entries;
    for (const Peer& peer : peers) entries.push_back({peer.socket.get(), POLLIN, 0});
    if (listening) entries.push_back({listening.get(), POLLIN, 0});
    ::poll(entries.data(), entries.size(), static_cast<int>(kLook.count()));
    const Clock::time_point now = Clock::now();
    if (now - looked > kOwnPause) {  // this process was stopped
      for (Peer& peer : peers) peer.heard = now;
    }
    looked = now;
    for (size_t i = 0; i < peers.size(); ++i) {
      if (entries[i].revents != 0) read(peers[i]);
    }
    if (listening && (entries.back().revents & POLLIN) != 0) accept_one();
    {
      const std::lock_guard lock(mutex);
      joined = static_cast<int>(
          std::ranges::count_if(peers, [](const Peer& peer) { return peer.rank > 0; }));
      changed.notify_all();
    }
    handle_own_end();
    check_remote_error();
    if (now - beat >= kBeat) {
      beat = now;
      for (const Peer& peer : peers) send_some(peer.socket, std::string(1, kAlive));
    }
    for (const Peer& peer : peers) {
      if (!peer.socket || peer.left || now - peer.heard < silence()) continue;
      lost(peer, Lost::kSilent,
           fmt::format("no sign of life for {} s; it hangs, or the network is down",
                       silence().count()));
    }
  }
  for (const Peer& peer : peers) send_some(peer.socket, std::string(1, kBye));
}

Watch::Watch(std::unique_ptr<State> state) : state_(std::move(state)) {
  state_->thread = std::thread([s = state_.get()] { s->run(); });
}

Watch::~Watch() {
  state_->stop = true;
  state_->thread.join();
}

std::unique_ptr<Watch> Watch::host(std::vector<std::string> names) {
  auto state = std::make_unique<State>();
  state->names = std::move(names);
  std::random_device random;
  state->token = (static_cast<uint64_t>(random()) << 32) | random();
  state->listen();
  return std::unique_ptr<Watch>(new Watch(std::move(state)));
}

std::string Watch::invitation() const {
  std::string text = fmt::format("{} {}", state_->token, state_->port);
  for (const std::string& address : own_addresses()) text += " " + address;
  return text;
}

std::unique_ptr<Watch> Watch::join(const std::string& invitation, int rank,
                                   std::vector<std::string> names, bool speaks) {
  std::istringstream in(invitation);
  auto state = std::make_unique<State>();
  state->rank = rank;
  state->names = std::move(names);
  state->speaks = speaks;
  in >> state->token >> state->port;
  std::vector<std::string> addresses;
  for (std::string address; in >> address;) addresses.push_back(address);
  Socket socket;
  for (const Clock::time_point until = Clock::now() + kJoinTime; !socket && Clock::now() < until;) {
    for (const std::string& address : addresses) {
      socket = try_to_join(address, state->port, state->token, rank);
      if (socket) break;
    }
  }
  if (!socket) {
    fail("{} cannot reach {} at {} (port {})", state->names[static_cast<size_t>(rank)],
         state->names[0], fmt::join(addresses, ", "), state->port);
  }
  state->peers.emplace_back().socket = std::move(socket);
  state->peers.back().rank = 0;
  return std::unique_ptr<Watch>(new Watch(std::move(state)));
}

void Watch::end(int exit_code, const std::string& message) {
  {
    const std::lock_guard lock(state_->mutex);
    state_->end_code = exit_code;
    state_->end_message = message;
    state_->ending = true;
  }
  while (true) std::this_thread::sleep_for(kEndTime);  // until the thread ends the process
}

}  // namespace fmp
