// What a plan must satisfy before anything of it is run.
#pragma once

#include <string>
#include <vector>

#include "plan/plan.h"

namespace dsv2 {

// One line for everything that is wrong with ``plan``: the rules of plan/check.py. Throws Overflow.
std::vector<std::string> plan_problems(const Plan& plan);

}  // namespace dsv2
