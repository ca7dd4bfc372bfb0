-- The clock, and how values live under their keys. Nothing else here reads the time or sets an expiry.
--
-- Time is the server's own, µs, read once: everything in one call happens at one instant, and the clocks of the callers
-- do not matter. A value may be forgotten at an instant by this clock, never earlier: Redis expires keys by the same
-- clock in ms, so the ms are rounded up.

local floor, ceil, min, max = math.floor, math.ceil, math.min, math.max
local encode, decode = cmsgpack.pack, cmsgpack.unpack

local time = redis.call('TIME')
local NOW_US = tonumber(time[1]) * 1000000 + tonumber(time[2])

-- Return what is kept under a key, false if nothing is.
local function load(key)
  return redis.call('GET', key)
end

-- Keep a value until an instant; if that has passed, keep nothing.
local function save(key, value, until_us)
  if until_us > NOW_US then
    redis.call('SET', key, value, 'PX', ceil((until_us - NOW_US) / 1000))
  else
    redis.call('DEL', key)
  end
end

-- Keep a hash until an instant. Its fields say themselves how long they are good.
local function keep_hash(key, until_us)
  redis.call('PEXPIRE', key, max(ceil((until_us - NOW_US) / 1000), 1))
end
