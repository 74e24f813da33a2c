-- confirm: the winner of a doorbell, or a holder in doubt, asks whether the lease stands; the body starts on 'held'.
-- What was granted before a change of the store begins after the freeze, under a token of this epoch.
-- Only the winner's own loop sends this, never a keepalive; who begins so late begins with its whole lock timeout.
--
-- KEYS[1]  the pool's `meta`
-- ARGV[1]  session    ARGV[2] lease id    ARGV[3] token
-- returns  {'held', ..., token, waited (ms), gpus} | {'lapsed'} (ask again by request) | {'gone', ..., reason}
--          | {'frozen', ..., remaining (ms), why} | {'no_session'} | {'unopened'}
local refusal = begin(ARGV[1])
if refusal then return refuse(refusal) end
local id = ARGV[2]
local t = tickets.get(id)
if not t then return books.answer('gone', redis.call('GET', names.base .. 'done:' .. id) or 'unknown') end
local gone_on = t.state ~= 'claim' and t.state ~= 'held' and t.state ~= 'member'
if gone_on or t.session ~= ARGV[1] or text(t.token) ~= ARGV[3] then return books.answer('lapsed') end
local is_of_before = t.state ~= 'member' and books.is_of_before(t.token)
local in_doubt = t.state == 'member' and members.in_doubt(t.of)
if in_doubt or (t.state == 'claim' or is_of_before) and books.frozen() then
  return books.answer('frozen', text(books.frozen_ms()), meta.frozen_why or '')
end
if is_of_before then tickets.token_anew(t) end
if t.state == 'claim' then tickets.confirm(t) else tickets.renew(t) end
return books.answer('held', text(t.token), text(math.max(0, (t.granted_ms or t.stamp) - t.stamp)), gpus.describe(gpus.split(t.gpus)))
