-- Places taken and gateways present: hashes of holder to (count, until) and of holder to until.

-- Return the places under a key: who has how many and until when, whose time is over, and how many are taken.
local function read_slots(key)
  local slots = {key = key, good = {}, dead = {}, taken = 0}
  local fields = redis.call('HGETALL', key)
  for i = 1, #fields, 2 do
    local count, until_us = decode(fields[i + 1])
    if until_us > NOW_US then
      slots.good[fields[i]] = {count = count, until_us = until_us}
      slots.taken = slots.taken + count
    else
      slots.dead[#slots.dead + 1] = fields[i]
    end
  end
  return slots
end

-- From now on `holder` has `count` more places for `ttl_us`, or as many instead if it `is_all`.
local function write_slots(slots, holder, count, ttl_us, is_all)
  for i = 1, #slots.dead do
    redis.call('HDEL', slots.key, slots.dead[i])
  end
  local before = slots.good[holder] and slots.good[holder].count or 0
  local after = is_all and count or before + count
  slots.taken = slots.taken - before + after
  if after == 0 then
    redis.call('HDEL', slots.key, holder)
    return
  end
  local until_us = NOW_US + ttl_us
  redis.call('HSET', slots.key, holder, encode(after, until_us))
  for other, place in pairs(slots.good) do
    if other ~= holder then
      until_us = max(until_us, place.until_us)
    end
  end
  keep_hash(slots.key, until_us)
end

local function occupy(op)
  local key, holder, count, ttl_us = KEYS[op[2]], op[3], op[4], op[5]
  local slots = read_slots(key)
  write_slots(slots, holder, count, ttl_us, true)
  return {'O', slots.taken, NOW_US}
end

local function announce(op)
  local key, epoch_key, holder, ttl_us = KEYS[op[2]], KEYS[op[3]], op[4], op[5]
  local gateways, until_us = 1, NOW_US + ttl_us
  redis.call('HSET', key, holder, encode(until_us))
  local fields = redis.call('HGETALL', key)
  for i = 1, #fields, 2 do
    local there_until_us = decode(fields[i + 1])
    if there_until_us <= NOW_US then
      redis.call('HDEL', key, fields[i])
    elseif fields[i] ~= holder then
      gateways = gateways + 1
      until_us = max(until_us, there_until_us)
    end
  end
  keep_hash(key, until_us)
  epoch_since_us(epoch_key)
  return {'N', gateways, epoch_id(), NOW_US}
end
