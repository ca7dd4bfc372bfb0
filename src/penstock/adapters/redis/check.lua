-- Check: take every demand or none. All is read before anything is written, and a rejection writes nothing.
--
-- A demand is (key, quota, cost, epoch key, hold key), a slot demand (key, slots, ttl): keys by their place in KEYS.

local function check(op)
  local demands, slot_demands, holder, hold_us = op[2], op[3], op[4], op[5]
  local buckets, left, denied, retry_after_us = {}, {}, -1, -1
  for i = 1, #demands do
    local demand = demands[i]
    local quota, cost = demand[2], demand[3]
    local bucket = open_bucket(KEYS[demand[1]], quota, demand[4])
    buckets[i], left[i] = bucket, remaining(bucket, quota)
    if not fits(bucket, quota, cost) then
      local after_us = wait_us(bucket, quota, cost)
      if after_us > retry_after_us then
        denied, retry_after_us = i - 1, after_us
      end
    end
  end
  local slots, taken = {}, {}
  for i = 1, #slot_demands do
    slots[i] = read_slots(KEYS[slot_demands[i][1]])
    taken[i] = slots[i].taken
    if denied < 0 and taken[i] >= slot_demands[i][2] then
      denied = #demands + i - 1
    end
  end
  if denied >= 0 then
    return {'C', denied, max(retry_after_us, 0), left, taken, NOW_US}
  end
  for i = 1, #demands do
    local demand, bucket = demands[i], buckets[i]
    local quota, cost, hold_key = demand[2], demand[3], demand[5]
    charge(bucket, quota, cost)
    left[i] = remaining(bucket, quota)
    keep_bucket(KEYS[demand[1]], quota, bucket)
    if hold_key > 0 then
      local until_us = bucket.at_us + hold_us
      save(KEYS[hold_key], encode(cost, bucket.at_us, bucket.since_us, until_us, bucket.epoch_us), until_us)
    end
  end
  for i = 1, #slot_demands do
    write_slots(slots[i], holder, 1, slot_demands[i][3], false)
    taken[i] = slots[i].taken
  end
  return {'C', -1, 0, left, taken, NOW_US}
end
