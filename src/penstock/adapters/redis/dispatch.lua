-- The call: ARGV[1] is an array of operations as `encoding.py` writes them, keys as places in KEYS; the answer is the
-- array of their replies. One operation that fails, for a key that holds something else, leaves the others alone: its
-- reply is what went wrong.

local handlers = {
  C = check, A = ask, S = settle, D = debit, O = occupy, N = announce, P = peek,
}

local operations = decode(ARGV[1])
local replies = {}
for i = 1, #operations do
  local op = operations[i]
  local is_done, reply = pcall(handlers[op[1]], op)
  if not is_done and type(reply) == 'table' then
    reply = reply.err -- Redis 7 raises a table, Redis 6 its text
  end
  replies[i] = reply
end
return encode(replies)
