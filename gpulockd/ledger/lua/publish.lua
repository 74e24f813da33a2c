-- publish: the daemon that offers the pool has other defaults for its clients, who are told them in the same step. Their
-- new requests use them, running ones keep what they began with.
--
-- KEYS[1]  the pool's `meta`
-- ARGV[1]  session of the daemon, '' for nobody's: taken only while that daemon is gone
-- ARGV[2]  version: above the pool's    ARGV[3] defaults (JSON, opaque)
-- ARGV[4]  event to tell of it, ''    ARGV[5] its fields (a JSON object)
-- returns  {'published', ..., version, defaults}: these stand, also if they did before
--          | {'superseded', ..., version, defaults}: of the pool | {'not_offered', ...}: another daemon offers it
--          | {'no_session'} | {'unopened'}
local version, defaults, kind = tonumber(ARGV[2]), ARGV[3], ARGV[4]
local refusal = begin(ARGV[1])
if refusal then return refuse(refusal) end
-- Nobody's word counts while no daemon offers the pool: a driver takes back what one that died has published.
local orphaned = ARGV[1] == '' and not redis.call('ZSCORE', names.sessions, meta.offer_session or '')
if meta.offered ~= '1' or (meta.offer_session ~= ARGV[1] and not orphaned) then return books.answer('not_offered') end
local present, stands = published.version(), redis.call('HGET', names.offer, 'defaults') or '{}'
if version < present or (version == present and stands ~= defaults) then
  return books.answer('superseded', text(present), stands)
end
if version > present then published.put(defaults, version) end
-- An offer may have brought this version before, without its event.
if kind ~= '' and redis.call('HGET', names.offer, 'told') ~= text(version) then
  redis.call('HSET', names.offer, 'told', text(version))
  books.emit(kind, string.sub(ARGV[5], 2, -2))
end
return books.answer('published', text(version), defaults)
