-- The arithmetic of one bucket: `policy/limiting.py` line by line, and held equal to it by tests/parity/test_limits.py.
-- There each formula has its reason; here is only what doubles need.
--
-- Every number is an integer below 2^53, where doubles are exact, and so is the floor or ceiling of a quotient of two.
-- Where a sum or product may be larger, it is cut to a smaller number at once, and rounding does not reach that far.
--
-- A quota is the array that `core/limits.py` encodes.
local DRAIN, WEIGHT, TICK_US, BURST, LEASE_MAX, IS_HARD = 1, 2, 3, 4, 5, 6

local function start_bucket(quota, at_us, level)
  return {
    level = level, at_us = at_us, since_us = at_us,
    drain = quota[DRAIN], weight = quota[WEIGHT], tick_us = quota[TICK_US],
    leased = 0, leased_until_us = 0, epoch_us = 0,
  }
end

local function drain_until(bucket, until_us, burst)
  if until_us <= bucket.at_us then
    return
  end
  local level, drain, tick_us = bucket.level, bucket.drain, bucket.tick_us
  if level > 0 then
    local ticks = floor(until_us / tick_us) - floor(bucket.at_us / tick_us)
    local drained = drain * min(ticks, ceil(level / drain))
    bucket.level = max(level - drained, min(min(bucket.leased, burst) * bucket.weight, level))
  end
  bucket.at_us = until_us
end

-- Bring a bucket to now, or leave it at its own time if that is later, and count it under a quota.
local function advance(bucket, quota)
  if bucket.leased > 0 and bucket.leased_until_us <= max(NOW_US, bucket.at_us) then
    drain_until(bucket, bucket.leased_until_us, quota[BURST])
    bucket.leased = 0
  end
  drain_until(bucket, NOW_US, quota[BURST])
  local weight, tick_us = quota[WEIGHT], quota[TICK_US]
  if bucket.weight ~= weight or bucket.drain ~= quota[DRAIN] or bucket.tick_us ~= tick_us then
    bucket.level = min(ceil(bucket.level / bucket.weight) * weight, 2 * quota[BURST] * weight)
    bucket.at_us = ceil(bucket.at_us / tick_us) * tick_us
    bucket.since_us = bucket.at_us
    bucket.drain, bucket.weight, bucket.tick_us = quota[DRAIN], weight, tick_us
  end
end

local function fits(bucket, quota, cost)
  return bucket.level + cost * quota[WEIGHT] <= quota[BURST] * quota[WEIGHT]
end

local function charge(bucket, quota, cost)
  bucket.level = min(bucket.level + cost * quota[WEIGHT], 2 * quota[BURST] * quota[WEIGHT])
end

local function fill(bucket, quota, tokens)
  local level = bucket.level + min(tokens, quota[BURST]) * quota[WEIGHT]
  bucket.level = max(min(level, quota[BURST] * quota[WEIGHT]), bucket.level)
end

-- Undo a part of a charge; return the tokens by which the bucket is emptier.
local function credit(bucket, quota, tokens, charged_at_us)
  local drain, weight, tick_us = quota[DRAIN], quota[WEIGHT], quota[TICK_US]
  local ticks = floor(bucket.at_us / tick_us) - floor(charged_at_us / tick_us)
  local units = tokens * weight
  units = units - drain * min(max(ticks, 0), ceil(units / drain))
  local lent = min(min(bucket.leased, quota[BURST]) * weight, bucket.level)
  local back = floor(max(min(units, bucket.level - lent), 0) / weight)
  bucket.level = bucket.level - back * weight
  return back
end

local function remaining(bucket, quota)
  return floor(max(quota[BURST] * quota[WEIGHT] - bucket.level, 0) / quota[WEIGHT])
end

local function wait_us(bucket, quota, cost)
  local excess = bucket.level + cost * quota[WEIGHT] - quota[BURST] * quota[WEIGHT]
  if excess <= 0 then
    return 0
  end
  local tick_us = quota[TICK_US]
  return (floor(bucket.at_us / tick_us) + ceil(excess / quota[DRAIN])) * tick_us - NOW_US
end

local function expiry_us(bucket, quota)
  local ticks, tick_us = ceil(bucket.level / quota[DRAIN]), quota[TICK_US]
  local full_us = (floor(bucket.at_us / tick_us) + ticks) * tick_us
  if bucket.leased == 0 then
    return full_us
  end
  return max(full_us, bucket.leased_until_us + ticks * tick_us)
end
