// plan.json: a plan from bytes, through every check.
#pragma once

#include <string_view>

#include "plan/plan.h"

namespace dsv2 {

// Error integrity with all problems if it is malformed, incompatible if of another version.
Plan parse_plan(std::string_view data);

}  // namespace dsv2
