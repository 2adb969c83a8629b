const { SHARED, PGHARNESS_WORKERS } = process.env;

module.exports = {
  testMatch: ['<rootDir>/test/*.spec.ts'],
  setupFilesAfterEnv: [SHARED ? '<rootDir>/test/shared.ts' : 'pg-harness/jest'],
  maxWorkers: SHARED ? 4 : Number(PGHARNESS_WORKERS ?? 1),
  testTimeout: 30_000,
  transform: {
    '\\.ts$': ['@swc/jest', {
      jsc: {
        target: 'es2022',
        parser: { syntax: 'typescript', decorators: true },
        transform: { legacyDecorator: true, decoratorMetadata: true },
      },
    }],
  },
};
