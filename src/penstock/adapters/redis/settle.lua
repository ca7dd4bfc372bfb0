-- Settle: correct a held charge to what it came to, once. Debit: count what was admitted without asking.
--
-- A hold is a key of its own: tokens, when they were charged, since when the bucket was counted then, until when it may be
-- settled, and the bucket's epoch. It goes by itself if nobody settles it.

local function settle(op)
  local key, quota, epoch_key, hold_key, actual = KEYS[op[2]], op[3], op[4], KEYS[op[5]], op[6]
  local bucket = open_bucket(key, quota, epoch_key)
  local given_back = 0
  local hold = load(hold_key)
  if hold then
    local tokens, charged_at_us, since_us, until_us, epoch_us = decode(hold)
    if until_us > bucket.at_us and not is_foreign(epoch_us, quota, bucket.epoch_us) then
      if actual > tokens then
        given_back = tokens - actual
        charge(bucket, quota, actual - tokens)
      elseif since_us == bucket.since_us then
        given_back = credit(bucket, quota, tokens - actual, charged_at_us)
      end
      redis.call('DEL', hold_key)
      keep_bucket(key, quota, bucket)
    end
  end
  return {'S', given_back, remaining(bucket, quota), NOW_US}
end

local function debit(op)
  local key, quota, epoch_key, tokens = KEYS[op[2]], op[3], op[4], op[5]
  local bucket = open_bucket(key, quota, epoch_key)
  local room = remaining(bucket, quota)
  fill(bucket, quota, tokens)
  keep_bucket(key, quota, bucket)
  local left = remaining(bucket, quota)
  return {'S', left - room, left, NOW_US}
end
