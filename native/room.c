/*
 * Whether there is room for what a rewind will write: asked before its first page.
 *
 * A rewind that fails for lack of room leaves a disk that is full to the last byte, and the next checkpoint of the server, which
 * others use, then ends in a PANIC (CheckPointReplicationOrigin), as does whoever writes to the log where pg_wal is full (XLogWrite).
 */
#include "pgh.h"

#include <sys/statvfs.h>

#include "access/xlog.h"
#include "access/xlog_internal.h"

#define FEW (1024 * 1024 / BLCKSZ)	/* pages that are not worth a question */

typedef struct Amount
{
	int64		files,			/* pages by which files grow */
				log;			/* pages of which the log gets images */
} Amount;

static Amount
amount_of(const Target *target)
{
	Amount		amount = {0};

	for (ForkNumber fork = MAIN_FORKNUM; fork < FORKS; fork++)
	{
		BlockNumber want = target->known->want[fork],
					have = target->have[fork] == InvalidBlockNumber ? 0 : target->have[fork];

		if (want == InvalidBlockNumber)
			continue;
		if (want > have)
			amount.files += want - have;
		if (target->known->unlogged)
			continue;
		if (target->remade || (target->dirty != NULL && target->dirty->all))
			amount.log += want;
		else if (target->dirty != NULL)
			amount.log += bms_num_members(target->dirty->blocks[fork]);
	}
	return amount;
}

static int64
pages_free(const char *folder)
{
	struct statvfs found;

	/* Who cannot tell does not keep anybody from writing. */
	if (statvfs(folder, &found) != 0)
		return PG_INT64_MAX;
	return (int64) found.f_bavail * (int64) found.f_frsize / BLCKSZ;
}

/*
 * NULL, or why these are for a clone, which is copied without the log.  The relations are locked and measured.
 *
 * No room is an error: rows would take as much.
 */
const char *
no_room_for(HTAB *targets)
{
	HASH_SEQ_STATUS scan;
	Target	   *target;
	Amount		all = {0};
	int64		spare = wal_segment_size / BLCKSZ,
				files,
				log;

	hash_seq_init(&scan, targets);
	while ((target = hash_seq_search(&scan)) != NULL)
	{
		Amount		one = amount_of(target);

		all.files += one.files;
		all.log += one.log;
	}
	if (all.files + all.log <= FEW)
		return NULL;
	/* What the log may hold between two checkpoints: it has no more room on a small disk. */
	if (all.log > (int64) max_wal_size_mb * (1024 * 1024 / BLCKSZ) / 2)
		return psprintf("%.0f MB would have to be written to the log", all.log * (BLCKSZ / 1e6));
	files = pages_free(".") - spare;
	log = pages_free(XLOGDIR) - spare;
	/* Where as much is free in both, they are on one disk. */
	if (files < all.files || log < all.log || (files == log && files < all.files + all.log))
		ereport(ERROR, errcode(ERRCODE_DISK_FULL),
				errmsg("the server's disk has no room for %.0f MB in files and %.0f MB of log", all.files * (BLCKSZ / 1e6),
					   all.log * (BLCKSZ / 1e6)));
	return NULL;
}
