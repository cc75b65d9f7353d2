// Backend cuda: engines that run on a GPU by their native plan.
#include <algorithm>
#include <limits>

#include "base/error.h"
#include "base/json.h"
#include "engine/integrity.h"
#include "native/store.h"
#include "plan/text.h"
#include "runtime/backend.h"

namespace dsv2 {
namespace {

constexpr double kShare = 0.95;  // part of the free memory that is taken unasked

class NativeModel : public Loaded {
 public:
  NativeModel(std::shared_ptr<Executor> executor, int64_t pages, int64_t vocab_size)
      : executor_(std::move(executor)),
        pool_(std::make_shared<PagePool>(pages, executor_->plan().page)),
        vocab_size_(vocab_size) {}

  std::unique_ptr<Store> store(int64_t slots, int64_t) override {
    return std::make_unique<PagedStore>(executor_, pool_, slots, vocab_size_);
  }
  Pages pages() const override { return {pool_->size, pool_->count, pool_->free()}; }

 private:
  std::shared_ptr<Executor> executor_;
  std::shared_ptr<PagePool> pool_;
  int64_t vocab_size_;
};

Plan read_plan(const std::string& root, const Manifest& manifest) {
  if (!manifest.files.count(kPlanName)) {
    throw Error(DSV2_INTEGRITY, std::string("The engine has no ") + kPlanName + ".", kCopyAgain);
  }
  return parse_plan(read_verified(root, manifest, kPlanName));
}

// Error incompatible unless the plan is one of the manifest's model, for sequences as long as it promises. What callers
// pass is held to the manifest, what is done with it follows the plan.
void require_fitting(const Plan& plan, const Manifest& manifest) {
  auto require = [](bool holds, const std::string& what) {
    if (!holds) throw Error(DSV2_INCOMPATIBLE, "The plan " + what + ".", kCopyAgain);
  };
  for (Phase phase : {Phase::extend, Phase::decode}) {
    require(std::any_of(plan.programs.begin(), plan.programs.end(), [&](auto& p) { return p.phase == phase; }),
            std::string("has no program for ") + name(phase));
  }
  constexpr Sizes none{0, 0, 0, 0};
  for (const PlanProgram& program : plan.programs) {
    for (const Buffer& b : program.buffers) {
      if (b.place != Place::output || b.name != "logits") continue;
      require(b.shape[1].evaluate(none) == manifest.model.vocab_size, "is of another vocabulary than the manifest");
    }
  }
  const Buffer& cache = cache_buffer(plan);
  require(cache.shape[0].evaluate(none) == manifest.model.num_hidden_layers && cache.shape[1].is(Symbol::slots) &&
              cache.shape[2].evaluate(none) == manifest.model.cache_dim(),
          "is of another cache than the manifest");
  require(Wide{plan.page} * plan.pages >= manifest.max_seq_len && plan.pages <= std::numeric_limits<int32_t>::max(),
          "has fewer pages a sequence than the manifest has positions");
  require_known_inputs(plan);
}

void require_compatible(const std::string& root, const Manifest& manifest, const LoadOptions&) {
  if (manifest.weights.empty()) {
    throw Error(DSV2_INCOMPATIBLE, "The engine was built with --no-weights: it holds a plan and kernels only.",
                "Build it again without --no-weights.");
  }
  Gpu gpu = find_gpu();
  require_architecture(gpu, read_plan(root, manifest).capability, manifest.target);
}

// Room for max_batch_size sequences of max_seq_len positions, or for as many as the GPU's free memory holds; a page if
// there is room for none, so that it is the executor that says what is missing.
int64_t fitting_tokens(const Plan& plan, const Manifest& manifest, Driver& driver) {
  auto [free, total] = explaining("tell its memory", [&] {
    Driver::Current current(driver);
    return driver.memory();
  });
  int64_t rest = memory_needs(plan, weight_layout(plan, manifest.weights), plan.page).total();
  auto room = static_cast<int64_t>(kShare * static_cast<double>(free) - static_cast<double>(rest));
  auto row = static_cast<int64_t>(std::max<Wide>(cache_buffer(plan).nbytes({0, 0, 0, 1}), 1));
  int64_t fits = room / row / plan.page * plan.page;
  Wide wanted = Wide{manifest.max_batch_size} * manifest.max_seq_len;
  return std::max(plan.page, static_cast<int64_t>(std::min<Wide>(wanted, fits)));
}

std::shared_ptr<Loaded> load(const std::string& root, const Manifest& manifest, const LoadOptions& options) {
  Plan plan = read_plan(root, manifest);
  require_fitting(plan, manifest);
  auto driver = explaining("be opened", [] { return std::make_unique<Driver>(find_gpu()); });
  require_architecture(driver->gpu(), plan.capability, manifest.target);
  int64_t tokens = options.cache_tokens ? options.cache_tokens : fitting_tokens(plan, manifest, *driver);
  int64_t pages = tokens / plan.page + (tokens % plan.page != 0);
  if (pages > std::numeric_limits<int32_t>::max() / plan.page) {
    throw Error(DSV2_RESOURCE, "A cache of " + std::to_string(tokens) + " tokens has more rows than can be numbered.",
                "Load it with a smaller cache_tokens.");
  }
  auto executor = explaining("be opened", [&] {
    return std::make_shared<Executor>(std::move(plan), root, manifest, std::move(driver), pages * plan.page);
  });
  return std::make_shared<NativeModel>(std::move(executor), pages, manifest.model.vocab_size);
}

}  // namespace

const Backend kCudaBackend = {require_compatible, load};

}  // namespace dsv2
