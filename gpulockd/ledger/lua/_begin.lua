-- How every verb begins.

-- `session` is the caller's, '' for none: a script that a client sends for itself extends its session. Does what is
-- due. Returns nil, or the word to answer with.
local function begin(session, terms, known_pool)
  if not books.open(terms, known_pool) then return 'unopened' end
  local now = books.now
  if books.frozen() and now >= tonumber(meta.frozen_until) then epochs.thaw() end
  if not books.frozen() then
    if now >= meta.due_ms then due.now() end
    if next(books.freed) then placing.place() end
  end
  if session == '' or redis.call('ZADD', names.sessions, 'XX', 'GT', 'CH', now + meta.ttl_ms, session) == 1 then return nil end
  local ends_ms = redis.call('ZSCORE', names.sessions, session)
  if ends_ms and (tonumber(ends_ms) > now or books.frozen()) then return nil end
  return 'no_session'
end

local function refuse(word)
  if word == 'unopened' then return {word} end
  return books.answer(word)
end
