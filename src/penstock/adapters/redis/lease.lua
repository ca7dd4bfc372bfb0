-- Ask: lend tokens, after taking back what is returned. Peek: look.
--
-- Leases are a hash beside the bucket: id to (holder, tokens, until). The sum of those that are good is in the bucket: if
-- that is 0 the hash is of another count and means nothing.

-- Return the leases that are good at the bucket's own time, and the ids of the others.
local function read_leases(key, bucket)
  local leases, dead = {}, {}
  if bucket.leased == 0 then
    return leases, dead
  end
  local fields = redis.call('HGETALL', key)
  for i = 1, #fields, 2 do
    local holder, tokens, until_us = decode(fields[i + 1])
    if until_us > bucket.at_us then
      leases[fields[i]] = {holder = holder, tokens = tokens, until_us = until_us}
    else
      dead[#dead + 1] = fields[i]
    end
  end
  return leases, dead
end

-- Return how many tokens are lent, until when the last of them, and how many holders there are, `holder` being one.
local function sum_leases(leases, holder)
  local leased, until_us, holders, seen = 0, 0, 1, {[holder] = true}
  for _, lease in pairs(leases) do
    leased = leased + lease.tokens
    until_us = max(until_us, lease.until_us)
    if not seen[lease.holder] then
      seen[lease.holder] = true
      holders = holders + 1
    end
  end
  return leased, until_us, holders
end

-- An even part of the room, but one token if there is one: `share_of_room` in `policy/leasing.py`.
local function share_of_room(room, holders)
  return max(floor(room / holders), min(room, 1))
end

-- Take back what is returned, each lease once; those that are gone have nothing to give.
local function close_leases(bucket, quota, leases, closes, dead)
  for i = 1, #closes do
    local id, unused = closes[i][1], closes[i][2]
    local lease = leases[id]
    if lease then
      bucket.level = max(bucket.level - min(unused, lease.tokens) * quota[WEIGHT], 0)
      leases[id] = nil
      dead[#dead + 1] = id
    end
  end
end

local function ask(op)
  local key, quota, epoch_key, leases_key = KEYS[op[2]], op[3], op[4], KEYS[op[5]]
  local holder, id, want, ttl_us, closes = op[6], op[7], op[8], op[9], op[10]
  local bucket, is_known = open_bucket(key, quota, epoch_key)
  local is_first = bucket.leased == 0
  local leases, dead = read_leases(leases_key, bucket)
  close_leases(bucket, quota, leases, closes, dead)
  local leased, until_us, holders = sum_leases(leases, holder)
  local tokens, granted = 0, 0
  if leases[id] then
    granted = leases[id].tokens -- said before, and the answer was lost
  else
    local room = min(remaining(bucket, quota), quota[LEASE_MAX] - leased)
    tokens = max(min(want, share_of_room(room, holders)), 0)
    granted = tokens
  end
  for i = 1, #dead do
    redis.call('HDEL', leases_key, dead[i])
  end
  if tokens > 0 then
    if is_first then
      redis.call('DEL', leases_key)
    end
    charge(bucket, quota, tokens)
    local own_until_us = bucket.at_us + min(ttl_us, LEASE_US_MAX)
    redis.call('HSET', leases_key, id, encode(holder, tokens, own_until_us))
    leased, until_us = leased + tokens, max(until_us, own_until_us)
    keep_hash(leases_key, until_us)
  end
  bucket.leased, bucket.leased_until_us = leased, until_us
  if is_known or tokens > 0 then
    keep_bucket(key, quota, bucket)
  end
  local after_us = granted > 0 and 0 or wait_us(bucket, quota, 1)
  return {'A', granted, remaining(bucket, quota), leased, after_us, NOW_US}
end

local function peek(op)
  local key, quota, epoch_key, leases_key = KEYS[op[2]], op[3], op[4], KEYS[op[5]]
  local bucket = open_bucket(key, quota, epoch_key)
  local leased, count = 0, 0
  for _, lease in pairs((read_leases(leases_key, bucket))) do
    leased, count = leased + lease.tokens, count + 1
  end
  return {'P', remaining(bucket, quota), leased, count, max(expiry_us(bucket, quota) - NOW_US, 0), NOW_US}
end
