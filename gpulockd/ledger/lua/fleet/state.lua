-- state: the revision in force.
--
-- KEYS     the fleet's (gpulockd/ledger/keys.py)    ARGV[1] '' (no session)
-- returns  {'state', TIME (ms), current revision (JSON) or '', its mark, number of the stable one or '', live document}
local number = fleet.current()
local config = redis.call('HMGET', names.config, 'stable', 'live')
local revision, mark = fleet.revision(number)
return fleet.answer('state', revision, mark, config[1] or '', config[2] or '')
