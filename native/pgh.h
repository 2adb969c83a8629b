/*
 * pgh: a leased database back to its baseline, page by page.
 *
 * known.c     which relations a baseline has: told once for each session
 * records.c   records of the write-ahead log, one after the other
 * log.c       which pages of the lease were written: one reading of the write-ahead log
 * present.c   who is in the way: transactions, statements, advisory locks, temporary tables, standbys
 * marks.c     states above the baseline: pages that differ from the state below
 * pages.c     one relation's files put back: truncated, made again, compared, copied, logged
 * room.c      whether the disk has room for it
 * rewind.c    the order of it all, and what other sessions are told
 *
 * docs/rewind.md explains it.  PostgreSQL 15 to 18; what differs between them stands in this file.
 */
#ifndef PGH_H
#define PGH_H

#include "postgres.h"

#include "access/xlogdefs.h"
#include "access/xlogrecord.h"
#include "common/relpath.h"
#include "nodes/bitmapset.h"
#include "nodes/pg_list.h"
#include "storage/block.h"
#include "storage/buf_internals.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "storage/smgr.h"
#include "utils/array.h"
#include "utils/backend_status.h"
#include "utils/hsearch.h"

/* --- what differs between versions -------------------------------------------------------------------------------- */

#if PG_VERSION_NUM < 150000 || PG_VERSION_NUM >= 190000
#error "tried with PostgreSQL 15 to 18 only"
#endif

#if PG_VERSION_NUM < 160000
typedef RelFileNode Locator;
typedef Oid RelNumber;
#define LOCATOR(spc, db, rel) ((RelFileNode) {(spc), (db), (rel)})
#define SPC(l) ((l).spcNode)
#define DB(l) ((l).dbNode)
#define REL(l) ((l).relNode)
#define RECORD_LOCATOR(rec) ((rec)->rnode)
#define PARSED_LOCATORS(parsed) ((parsed).xnodes)
#define BUFFER_DB(buffer) ((buffer)->tag.rnode.dbNode)
#define BUFFER_REL(buffer) ((buffer)->tag.rnode.relNode)
#define STATUS_OF(index) pgstat_fetch_stat_local_beentry(index)
#define PGIOAlignedBlock PGAlignedBlock
#define FIRST_LOCK(list) (PROCLOCK *) SHMQueueNext((list), (list), offsetof(PROCLOCK, procLink))
#define NEXT_LOCK(list, lock) (PROCLOCK *) SHMQueueNext((list), &(lock)->procLink, offsetof(PROCLOCK, procLink))
#else
typedef RelFileLocator Locator;
typedef RelFileNumber RelNumber;
#define LOCATOR(spc, db, rel) ((RelFileLocator) {(spc), (db), (rel)})
#define SPC(l) ((l).spcOid)
#define DB(l) ((l).dbOid)
#define REL(l) ((l).relNumber)
#define RECORD_LOCATOR(rec) ((rec)->rlocator)
#define PARSED_LOCATORS(parsed) ((parsed).xlocators)
#define BUFFER_DB(buffer) ((buffer)->tag.dbOid)
#define BUFFER_REL(buffer) BufTagGetRelNumber(&(buffer)->tag)
#define STATUS_OF(index) pgstat_get_local_beentry_by_index(index)
#define LOCK_AT(list, node) \
	((node) == &(list)->head ? NULL : dlist_container(PROCLOCK, procLink, (node)))
#define FIRST_LOCK(list) (dlist_is_empty(list) ? NULL : dlist_head_element(PROCLOCK, procLink, (list)))
#define NEXT_LOCK(list, lock) LOCK_AT((list), (lock)->procLink.next)
#endif

#if PG_VERSION_NUM < 170000
#define NOBODY InvalidBackendId
#define NUMBER_OF(proc) ((proc)->backendId)
#define KEEP_OPEN(known) smgrsetowner(&(known)->smgr, (known)->smgr)
#define LET_CLOSE(known) smgrclose((known)->smgr)
#define LOG_MESSAGE() LogLogicalMessage("pgh", "", 0, false)
#else
#define NOBODY INVALID_PROC_NUMBER
#define NUMBER_OF(proc) GetNumberFromPGProc(proc)
#define KEEP_OPEN(known) smgrpin((known)->smgr)
#define LET_CLOSE(known) (smgrclose((known)->smgr), smgrunpin((known)->smgr))
#define LOG_MESSAGE() LogLogicalMessage("pgh", "", 0, false, false)
#endif

#if PG_VERSION_NUM < 180000
#define SMGRTRUNCATE(smgr, forks, n, old, want) ((void) (old), smgrtruncate((smgr), (forks), (n), (want)))
#define FILE_PATH(locator, fork) relpathperm((locator), (fork))
#else
#define SMGRTRUNCATE(smgr, forks, n, old, want) smgrtruncate((smgr), (forks), (n), (old), (want))
#define FILE_PATH(locator, fork) (relpathperm((locator), (fork)).str)
#endif

#define OPEN(locator) smgropen((locator), NOBODY)

/* The main fork, the free space map, the visibility map, the fork to which an unlogged relation is reset. */
#define FORKS (INIT_FORKNUM + 1)

/* A function of the same name in the server must not take the place of ours. */
#pragma GCC visibility push(hidden)

/* --- known.c ------------------------------------------------------------------------------------------------------ */

extern HTAB *make_table(const char *name, long size, Size key, Size entry, MemoryContext context);
extern int	elements(ArrayType *array, Oid type, Datum **values);

typedef struct Known
{
	RelNumber	node;			/* key: the number of its files, in the baseline and in the lease */
	Oid			oid;			/* for locks and messages */
	Oid			table;			/* the table whose heap, index, TOAST it is; its own OID else */
	char		kind;			/* pg_class.relkind */
	bool		btree;
	bool		unlogged;
	bool		gone;			/* a mark's state has it no more */
	bool		measured;
	BlockNumber want[FORKS];	/* blocks in the state to go back to; InvalidBlockNumber: no such fork */
	Oid			lease;			/* whose file is open here */
	SMgrRelation smgr;			/* its files, kept open from one rewind to the next */
} Known;

extern Oid	known_baseline;
extern List *known_unlogged;	/* of numbers of files */

extern Known *known_file(RelNumber node);
extern Known *known_below(RelNumber node);
extern List *known_family(Oid table);	/* numbers of the files of a table, of its indexes and its TOAST */
extern SMgrRelation known_lease(Known *known, Oid lease);
extern Known *know_file(RelNumber node, Oid oid, Oid table, char kind, bool unlogged);
extern void forget_file(RelNumber node);
extern char kind_of(const Known *known);

/* What this session remembers of a lease from one rewind to the next. */
typedef struct Memory
{
	Oid			lease;			/* key */
	XLogRecPtr	upto;			/* where the last window ended */
	uint32		passes,
				hand;			/* where buffers were replaced then */
	List	   *tombstones;		/* numbers of files that were dropped, and stay empty until the next checkpoint */
} Memory;

extern Memory *memory_of(Oid lease);

/* --- records.c ---------------------------------------------------------------------------------------------------- */

typedef struct LogBlock
{
	Locator		at;
	ForkNumber	fork;
	BlockNumber block;
} LogBlock;

typedef struct LogRecord
{
	const XLogRecord *header;
	char	   *data;			/* the main data of the kinds of records that are looked into, aligned; garbage for others */
	Size		room;
	int			nblocks;
	LogBlock	blocks[XLR_MAX_BLOCK_ID + 2];
} LogRecord;

extern XLogRecPtr first_record(XLogRecPtr position);
extern const char *each_record(XLogRecPtr from, XLogRecPtr until, void (*note) (const LogRecord *record, void *seen),
							   void *seen);

/* --- log.c -------------------------------------------------------------------------------------------------------- */

typedef struct Dirty
{
	RelNumber	node;			/* key */
	bool		all;			/* other things than pages: made, truncated, dropped */
	bool		dropped;
	bool		inserted;		/* all records of it put something into an index: no page became free */
	Bitmapset  *blocks[FORKS];
	BlockNumber newest[FORKS];	/* the one that was added last */
} Dirty;

typedef struct Seen
{
	HTAB	   *files;			/* of Dirty */
	Dirty	   *last;			/* the one that was written last */
	List	   *shared;			/* ids of transactions that wrote to the server's own catalogs */
	const char *refused;		/* why pages are not enough */
} Seen;

extern void seen_begin(Seen *seen);
extern Dirty *seen_file(Seen *seen, RelNumber node);
extern void read_log(Seen *seen, XLogRecPtr from, XLogRecPtr until, Oid lease, const Datum *own, int nown);

/* --- present.c ---------------------------------------------------------------------------------------------------- */

typedef struct Present
{
	List	   *busy;			/* pids */
	List	   *idle;			/* pids of sessions that idle in a transaction */
	List	   *temporary;		/* OIDs of namespaces of sessions that have temporary tables, or had some */
	bool		prepared;
	bool		hidden;			/* a session does not say what it does */
	uint64		activity;		/* changes when any session begins or ends a statement, comes or goes */
} Present;

extern bool is_ours(int pid, const Datum *ours, int nours);
extern Present look_around(Oid lease, const Datum *ours, int nours);
extern bool anybody_reads(Oid lease);
extern ArrayType *advisory_locks(Oid lease, const Datum *ours, int nours);
extern const char *cannot_rewind(Oid lease);

/* --- marks.c ------------------------------------------------------------------------------------------------------ */

typedef struct MarkNode
{
	RelNumber	node;
	Oid			oid;
	Oid			table;
	char		kind;
	bool		unlogged;
	bool		gone;
	BlockNumber want[FORKS];
} MarkNode;

typedef struct MarkWriter MarkWriter;

extern void use_marks(ArrayType *names);
extern void forget_marks(void);
extern void note_marks(Seen *seen, ArrayType *names);
extern const char *marked_page(RelNumber node, ForkNumber fork, BlockNumber block);

extern void forget_provisional(void);
extern MarkWriter *begin_mark(const char *name);
extern void mark_node(MarkWriter *writer, const MarkNode *node);
extern void mark_page(MarkWriter *writer, RelNumber node, ForkNumber fork, BlockNumber block, const char *page);
extern void end_mark(MarkWriter *writer);

/* --- pages.c ------------------------------------------------------------------------------------------------------ */

typedef struct Target
{
	RelNumber	node;			/* key */
	Known	   *known;
	Dirty	   *dirty;			/* NULL: only what the log does not name can differ */
	BlockNumber have[FORKS];	/* blocks in the lease, once it is locked; InvalidBlockNumber: no such fork */
	Bitmapset  *buffered;		/* of an index: its pages in the buffers; NULL where all are compared */
	bool		remade;
} Target;

typedef struct Work
{
	Oid			lease,
				baseline;
	XLogRecPtr	end;			/* of our last record; what lies between the locks and it is ours alone, if .. */
	bool		contiguous;		/* .. this holds */
	bool		weak;			/* readers are not locked out */
	int64		compared,
				written,
				truncated,
				made,
				dropped;
} Work;

extern void measure_baseline(Oid baseline, Known *known);
extern void measure_lease(Oid lease, Target *target);
extern int64 pages_to_compare(const Target *target);
extern void make_again(Work *work, Target *target);
extern void shorten_all(Work *work, HTAB *targets);
extern void restore(Work *work, Target *target);
extern bool anything_depends(Oid lease, const Target *target, const List *namespaces);
extern void mark_target(Work *work, Target *target, MarkWriter *writer);
extern void buffered_pages(Work *work, HTAB *targets);

/* --- room.c ------------------------------------------------------------------------------------------------------- */

extern const char *no_room_for(HTAB *targets);

#pragma GCC visibility pop

#endif
