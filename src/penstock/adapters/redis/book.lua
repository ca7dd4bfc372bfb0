-- Buckets under their keys, and the epoch of their server: `LimitBook` of `policy/limit_book.py`, its first part.
--
-- A bucket is one string, nine numbers as MessagePack. A key that is not there is a bucket full of tokens, so one
-- that is full is not kept.

local epoch = nil -- of this server, once an operation wants it

-- Return what tells this server's reign from every other: the run id is another after each start, the replication id
-- after each promotion. A former primary that follows its successor and is then promoted again has only the latter anew.
local function epoch_id()
  if epoch == nil then
    local run_id = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
    epoch = run_id .. ':' .. string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)')
  end
  return epoch
end

-- Return when this reign began to count what is under `key`'s hash tag; no two say the same. What the server knows from
-- before may be incomplete: after a restart or a failover writes may be lost, those that were acknowledged last.
local function epoch_since_us(key)
  local known = redis.call('GET', key)
  local since_us = NOW_US
  if known then
    local id, known_since_us = decode(known)
    if id == epoch_id() then
      return known_since_us
    end
    since_us = max(since_us, known_since_us + 1)
  end
  redis.call('SET', key, encode(epoch_id(), since_us))
  return since_us
end

-- True if what bears this stamp is an earlier server's, under a quota that does not trust it. No clock tells: that of
-- a successor may be behind. What a soft quota has counted, stamp 0, is taken over.
local function is_foreign(epoch_us, quota, since_us)
  return quota[IS_HARD] and epoch_us ~= 0 and epoch_us ~= since_us
end

-- Return a key's bucket at now, and whether it was there and is to be trusted.
local function open_bucket(key, quota, epoch_key)
  local since_us = quota[IS_HARD] and epoch_since_us(KEYS[epoch_key]) or 0
  local bucket = nil
  local known = load(key)
  if known then
    local level, at_us, count_since_us, drain, weight, tick_us, leased, leased_until_us, epoch_us = decode(known)
    if not is_foreign(epoch_us, quota, since_us) then
      bucket = {
        level = level, at_us = at_us, since_us = count_since_us, drain = drain, weight = weight, tick_us = tick_us,
        leased = leased, leased_until_us = leased_until_us,
      }
    end
  end
  local is_known = bucket ~= nil
  if not is_known and quota[IS_HARD] then
    bucket = start_bucket(quota, since_us + LEASE_US_MAX, quota[BURST] * quota[WEIGHT])
  elseif not is_known then
    bucket = start_bucket(quota, NOW_US, 0)
  end
  bucket.epoch_us = since_us
  advance(bucket, quota)
  return bucket, is_known
end

local function keep_bucket(key, quota, bucket)
  local value = encode(
    bucket.level, bucket.at_us, bucket.since_us, bucket.drain, bucket.weight, bucket.tick_us,
    bucket.leased, bucket.leased_until_us, bucket.epoch_us
  )
  save(key, value, expiry_us(bucket, quota))
end
