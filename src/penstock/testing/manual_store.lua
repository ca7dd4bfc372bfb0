-- Takes the place of `adapters/redis/store.lua` in tests: the time is what the test says, and what expires does so by it.
--
-- A value lies in Redis with the instant of its expiry before it. An expired one is gone once somebody has looked.

local floor, ceil, min, max = math.floor, math.ceil, math.min, math.max
local encode, decode = cmsgpack.pack, cmsgpack.unpack

local NOW_US = tonumber(ARGV[2])

local function load(key)
  local found = redis.call('GET', key)
  if not found then
    return false
  end
  local until_us, value = decode(found)
  if until_us <= NOW_US then
    redis.call('DEL', key)
    return false
  end
  return value
end

-- In whole ms from now, as Redis counts.
local function save(key, value, until_us)
  if until_us > NOW_US then
    redis.call('SET', key, encode(NOW_US + ceil((until_us - NOW_US) / 1000) * 1000, value))
  else
    redis.call('DEL', key)
  end
end

local function keep_hash(key, until_us)
end
