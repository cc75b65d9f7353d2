#include "runtime/batch.h"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

#include "runtime/sampling.h"

namespace dsv2 {

struct Batch::Sequence {
  Sequence(uint64_t number_, Request request_, int64_t pages_)
      : number(number_), request(std::move(request_)), pages(pages_), random(request.sampling.seed, request.stream) {}

  int64_t left() const { return static_cast<int64_t>(request.prompt.size()) - cached; }
  // Whether the next call gives a token of the answer: none of the prompt is left after it.
  bool in_full() const { return take >= left(); }
  // The tokens that it adds.
  const int32_t* next() const { return made ? &last : request.prompt.data() + cached; }

  uint64_t number;
  Request request;
  int64_t pages;
  RandomStream random;
  int64_t slot = -1, cached = 0, made = 0;
  int32_t last = 0;
  int64_t take = 0;  // tokens that the next call adds
};

Batch::Batch(Calls* calls, Limits limits, std::vector<int64_t> eos, Options options)
    : calls_(calls), limits_(limits), eos_(std::move(eos)), options_(options) {
  counts_.max_batch = calls->max_batch();
  counts_.page_count = limits.pages.count;
}

Batch::~Batch() = default;

void Batch::submit(uint64_t number, Request request) {
  limits_.check(request);
  if (options_.max_waiting && static_cast<int64_t>(waiting_.size()) >= options_.max_waiting) {
    throw Error(DSV2_RESOURCE, std::to_string(waiting_.size()) + " requests are waiting, no more are taken.",
                "Try again when some have ended.");
  }
  int64_t pages = limits_.pages_of(request);
  waiting_.push_back(std::make_unique<Sequence>(number, std::move(request), pages));
  ++counts_.submitted;
}

std::vector<Event> Batch::step() {
  std::vector<Event> events;
  leave(&events);
  bool decoded = decode(&events);
  admit();
  bool prefilled = prefill(&events);
  counts_.steps += decoded || prefilled;
  return events;
}

dsv2_scheduler_stats Batch::stats() const {
  dsv2_scheduler_stats found = counts_;
  found.waiting = static_cast<int64_t>(waiting_.size());
  found.live = static_cast<int64_t>(live_.size());
  return found;
}

void Batch::leave(std::vector<Event>* events) {
  const std::set<uint64_t> leaving = std::exchange(cancelled_, {});
  if (leaving.empty()) return;
  SequenceRows found;
  for (const Owned& s : live_) {
    if (leaving.count(s->number)) found.push_back(s.get());
  }
  for (Sequence* s : found) events->push_back(end(s, {s->number, kNoToken, DSV2_CANCELLED, {}}));
  for (auto at = waiting_.begin(); at != waiting_.end();) {
    if (!leaving.count((*at)->number)) {
      ++at;
      continue;
    }
    events->push_back({(*at)->number, kNoToken, DSV2_CANCELLED, {}});
    ++counts_.cancelled;
    at = waiting_.erase(at);
  }
}

bool Batch::decode(std::vector<Event>* events) {
  SequenceRows rows;
  for (const Owned& s : live_) {
    if (!s->made) continue;
    s->take = 1;
    rows.push_back(s.get());
  }
  std::sort(rows.begin(), rows.end(), [](Sequence* a, Sequence* b) { return a->slot < b->slot; });
  run(&Calls::step, rows, events);
  return !rows.empty();
}

void Batch::admit() {
  std::vector<bool> taken(static_cast<size_t>(counts_.max_batch));
  for (const Owned& s : live_) taken[static_cast<size_t>(s->slot)] = true;
  while (!waiting_.empty() && live_.size() < taken.size()) {
    Owned& head = waiting_.front();
    if (counts_.pages_committed + head->pages > limits_.pages.count) return;
    auto slot = std::find(taken.begin(), taken.end(), false);
    *slot = true;
    head->slot = slot - taken.begin();
    counts_.pages_committed += head->pages;
    live_.push_back(std::move(head));
    waiting_.pop_front();
  }
}

bool Batch::prefill(std::vector<Event>* events) {
  SequenceRows fresh, begun;
  int64_t room = options_.chunk ? options_.chunk : std::numeric_limits<int64_t>::max();
  for (const Owned& s : live_) {
    if (s->left() <= 0 || !room) continue;
    s->take = std::min(s->left(), room);
    room -= s->take;
    (s->cached ? begun : fresh).push_back(s.get());
  }
  const bool any = !fresh.empty() || !begun.empty();
  run(&Calls::start, fresh, events);
  run(&Calls::resume, begun, events);
  return any;
}

// Adds the next ``take`` tokens of each row. What is chosen amid a prompt means nothing: it takes no random number and
// is no event.
void Batch::run(Call call, const SequenceRows& rows, std::vector<Event>* events) {
  if (rows.empty()) return;
  std::vector<Draw> draws;
  for (Sequence* s : rows) draws.push_back(s->in_full() ? draw(s->request.sampling, &s->random) : Draw{});
  std::vector<int32_t> next(rows.size());
  std::vector<std::optional<Error>> errors(rows.size());
  call_isolated(call, rows, draws, &next, &errors);
  for (size_t b = 0; b < rows.size(); ++b) {
    Sequence* s = rows[b];
    if (errors[b]) {
      events->push_back(end(s, {s->number, kNoToken, DSV2_FAILED, errors[b]}));
      continue;
    }
    const bool whole = s->in_full();
    s->cached += s->take;
    if (!s->made) counts_.prompt_tokens += static_cast<uint64_t>(s->take);
    if (whole) events->push_back(advance(s, next[b]));
  }
}

// The token of each row, or its error: where a call fails, each row is tried alone, with the same draw.
void Batch::call_isolated(Call call, const SequenceRows& rows, const std::vector<Draw>& draws,
                          std::vector<int32_t>* next, std::vector<std::optional<Error>>* errors) {
  try {
    call_rows(call, rows, draws.data(), next->data());
    return;
  } catch (const Error& e) {
    if (rows.size() == 1) {
      errors->front() = e;
      return;
    }
  }
  for (size_t b = 0; b < rows.size(); ++b) {
    try {
      call_rows(call, {rows[b]}, &draws[b], &(*next)[b]);
    } catch (const Error& e) {
      (*errors)[b] = e;
    }
  }
}

void Batch::call_rows(Call call, const SequenceRows& rows, const Draw* draws, int32_t* next) {
  std::vector<int32_t> lengths, slots;
  for (const Sequence* s : rows) {
    lengths.push_back(static_cast<int32_t>(s->take));
    slots.push_back(static_cast<int32_t>(s->slot));
  }
  const int64_t columns = *std::max_element(lengths.begin(), lengths.end());
  std::vector<int32_t> tokens(rows.size() * static_cast<size_t>(columns));
  for (size_t b = 0; b < rows.size(); ++b) {
    std::copy_n(rows[b]->next(), rows[b]->take, tokens.begin() + static_cast<int64_t>(b) * columns);
  }
  const TokenRows given{tokens.data(), static_cast<int64_t>(rows.size()), columns, lengths.data(), slots.data()};
  (calls_->*call)(given, draws, next);
}

Event Batch::advance(Sequence* s, int32_t token) {
  s->last = token;
  ++s->made;
  ++counts_.new_tokens;
  const std::vector<int32_t>& stop = s->request.stop;
  if (std::count(eos_.begin(), eos_.end(), token) || std::count(stop.begin(), stop.end(), token)) {
    return end(s, {s->number, token, DSV2_STOP, {}});
  }
  if (s->made == s->request.max_new_tokens ||
      static_cast<int64_t>(s->request.prompt.size()) + s->made > limits_.max_tokens) {
    return end(s, {s->number, token, DSV2_LENGTH, {}});
  }
  return {s->number, token, DSV2_RUNNING, {}};
}

// Ends a live sequence.
Event Batch::end(Sequence* s, Event event) {
  ++(event.finish == DSV2_CANCELLED ? counts_.cancelled
     : event.finish == DSV2_FAILED  ? counts_.failed
                                    : counts_.finished);
  counts_.pages_committed -= s->pages;
  const auto slot = static_cast<int32_t>(s->slot);
  const bool holds = s->cached > 0;
  live_.erase(std::find_if(live_.begin(), live_.end(), [&](const Owned& other) { return other.get() == s; }));
  if (holds) calls_->free(&slot, 1);
  return event;
}

}  // namespace dsv2
